//! The released models, known by their small files alone: family and number of parameters, mask token, stop tokens and
//! default plan, without weights. `tests/configs/README.md` says where each of the files is from.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use unmask::decode::{EarlyStop, preset};
use unmask::models::{AttentionPattern, Checkpoint};

/// What `unmask inspect --load-format dummy --json` says of a config.json.
fn inspect(config: &Path, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_unmask"))
        .args([
            "inspect",
            "--json",
            "--device",
            "cpu",
            "--load-format",
            "dummy",
        ])
        .args(arguments)
        .arg("--model")
        .arg(config)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", config.display());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The folder of a model's files, or its config.json where that is all there is.
fn config(name: &str) -> PathBuf {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    match configs.join(name) {
        folder if folder.is_dir() => folder,
        _ => configs.join(format!("{name}.json")),
    }
}

/// A pre-norm transformer with gated MLPs.
struct Transformer {
    hidden: u64,
    layers: u64,
    /// Query heads, key/value heads, width of a head.
    heads: [u64; 3],
    vocab: u64,
    tied: bool,
    qkv_bias: bool,
    qk_norm: bool,
    /// Parameters of all MLPs.
    mlps: u64,
}

impl Transformer {
    /// Embedding, attentions, MLPs, two norms a layer and one after the last, head.
    fn parameters(&self) -> u64 {
        let [q, kv, dim] = self.heads;
        let (query, value) = (q * dim, kv * dim);
        let attention = self.hidden * (2 * query + 2 * value)
            + if self.qkv_bias { query + 2 * value } else { 0 }
            + if self.qk_norm { 2 * dim } else { 0 };
        let tables = self.vocab * self.hidden * if self.tied { 1 } else { 2 };
        tables + self.layers * (attention + 2 * self.hidden) + self.mlps + self.hidden
    }
}

/// Gate, up and down.
fn gated(hidden: u64, width: u64) -> u64 {
    3 * hidden * width
}

/// A diffusion transformer with adaLN of `cond` dimensions: embedding and head with bias, σ's embedding of
/// 256 sinusoids, and a layer's qkv, output, MLP of four times the width, two norms, six modulations; two
/// modulations and a norm at the end.
fn dit(hidden: u64, layers: u64, vocab: u64) -> u64 {
    let cond = 128;
    let modulation = |parts: u64| parts * hidden * (cond + 1);
    let layer =
        4 * hidden * hidden + (8 * hidden * hidden + 5 * hidden) + 2 * hidden + modulation(6);
    let sigma = (256 * cond + cond) + (cond * cond + cond);
    let output = hidden + modulation(2) + vocab * hidden + vocab;
    vocab * hidden + sigma + layers * layer + output
}

fn llada(kv_heads: u64, width: u64, vocab: u64, tied: bool) -> u64 {
    let transformer = Transformer {
        hidden: 4096,
        layers: 32,
        heads: [32, kv_heads, 128],
        vocab,
        tied,
        qkv_bias: false,
        qk_norm: false,
        mlps: 32 * gated(4096, width),
    };
    transformer.parameters()
}

fn qwen2(hidden: u64, layers: u64, heads: [u64; 3], width: u64, vocab: u64, tied: bool) -> u64 {
    let transformer = Transformer {
        hidden,
        layers,
        heads,
        vocab,
        tied,
        qkv_bias: true,
        qk_norm: false,
        mlps: layers * gated(hidden, width),
    };
    transformer.parameters()
}

fn qwen3(hidden: u64, layers: u64, heads: [u64; 3], mlp: u64, tied: bool) -> u64 {
    let transformer = Transformer {
        hidden,
        layers,
        heads,
        vocab: 151_936,
        tied,
        qkv_bias: false,
        qk_norm: true,
        mlps: layers * mlp,
    };
    transformer.parameters()
}

/// Layers of which the first is dense; the others have 256 experts with a router and its bias, and an MLP
/// that every row goes through.
fn llada2(hidden: u64, layers: u64, heads: [u64; 3], dense: u64, expert: u64) -> u64 {
    let experts = 257 * gated(hidden, expert) + 256 * hidden + 256;
    let transformer = Transformer {
        hidden,
        layers,
        heads,
        vocab: 157_184,
        tied: false,
        qkv_bias: false,
        qk_norm: true,
        mlps: gated(hidden, dense) + (layers - 1) * experts,
    };
    transformer.parameters()
}

/// The models' cards and papers give the number in billions, some only roughly ("100B" of LLaDA2.0-flash,
/// whose network is the 103B of Ling-flash-2.0; "8B" of iLLaDA, by its sizes 7.6). The published exact numbers are those of Hugging Face's safetensors metadata: of Dream's
/// base Qwen2.5-7B, and of the Qwen models that keep their network.
#[test]
fn a_released_config_json_alone_tells_family_and_number_of_parameters() {
    let llada_moe = Transformer {
        hidden: 2048,
        layers: 16,
        heads: [16, 16, 128],
        vocab: 157_184,
        tied: false,
        qkv_bias: false,
        qk_norm: true,
        mlps: 16 * (64 * gated(2048, 1024) + 64 * 2048),
    };
    let dream = qwen2(3584, 28, [28, 4, 128], 18_944, 152_064, false);
    let flash = llada2(4096, 32, [32, 4, 128], 9216, 1024);
    let mini = llada2(2048, 20, [16, 4, 128], 5120, 512);
    let a2d_qwen3 = qwen3(1024, 28, [16, 8, 128], gated(1024, 3072), true);
    let sdar_8b = qwen3(4096, 36, [32, 8, 128], gated(4096, 12_288), false);
    let sdar_30b = qwen3(
        2048,
        48,
        [32, 4, 128],
        128 * gated(2048, 768) + 128 * 2048,
        false,
    );
    let a2d_qwen2 = qwen2(896, 24, [14, 2, 64], 4864, 151_936, true);
    for (formula, published) in [
        (dream, 7_615_616_512),
        (a2d_qwen3, 596_049_920),
        (a2d_qwen2, 494_032_768),
        (sdar_8b, 8_190_735_360),
        (sdar_30b, 30_532_122_624),
    ] {
        assert_eq!(formula, published);
    }
    let llada_8b = llada(32, 12_288, 126_464, false);
    let dit_small = dit(768, 12, 50_258);
    let expected = [
        ("LLaDA-8B-Instruct", "llada", llada_8b, 8.02),
        ("LLaDA-1.5", "llada", llada_8b, 8.02),
        ("iLLaDA-8B", "illada", llada(8, 14_336, 155_136, true), 7.62),
        ("Dream-v0-Instruct-7B", "dream", dream, 7.62),
        ("Dream-Coder-v0-Instruct-7B", "dream", dream, 7.62),
        ("DiffuCoder-7B-Instruct", "dream", dream, 7.62),
        ("DreamOn-v0-7B", "dream", dream, 7.62),
        (
            "LLaDA-MoE-7B-A1B-Instruct",
            "llada_moe",
            llada_moe.parameters(),
            7.36,
        ),
        ("LLaDA2.0-mini", "llada2_moe", mini, 16.26),
        ("LLaDA2.1-mini", "llada2_moe", mini, 16.26),
        ("LLaDA2.0-flash", "llada2_moe", flash, 103.0),
        (
            "SDAR-4B-Chat",
            "sdar",
            qwen3(2560, 36, [32, 8, 128], gated(2560, 9728), false),
            4.41,
        ),
        ("SDAR-8B-Chat", "sdar", sdar_8b, 8.19),
        ("SDAR-30B-A3B-Chat", "sdar", sdar_30b, 30.5),
        ("mdlm-owt", "mdlm", dit_small, 0.170),
        ("bd3lm-owt-block_size4", "bd3lm", dit_small, 0.170),
        ("bd3lm-owt-block_size8", "bd3lm", dit_small, 0.170),
        ("bd3lm-owt-block_size16", "bd3lm", dit_small, 0.170),
        ("sedd-small", "sedd", dit_small, 0.170),
        ("sedd-medium", "sedd", dit(1024, 24, 50_258), 0.424),
        ("Qwen3-0.6B-diffusion-mdlm-v0.1", "a2d", a2d_qwen3, 0.596),
        ("Qwen3-0.6B-diffusion-bd3lm-v0.1", "a2d", a2d_qwen3, 0.596),
        (
            "Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1",
            "a2d",
            a2d_qwen2,
            0.494,
        ),
    ];
    for (name, family, parameters, billions) in expected {
        let found = inspect(&config(name), &[]);
        assert_eq!(found["name"], name);
        assert_eq!(found["spec"]["family"], family, "{name}");
        assert_eq!(found["spec"]["parameters"], parameters, "{name}");
        // Beside the parameters the diffusion transformers hold the frequencies of a head of width 64.
        let is_dit = ["mdlm", "bd3lm", "sedd"].contains(&family);
        let held = parameters + if is_dit { 32 } else { 0 };
        assert_eq!(found["weight_bytes"], 4 * held, "{name}");
        let off = (parameters as f64 / 1e9 / billions - 1.0f64).abs();
        assert!(off < 0.02, "{name}: {parameters} is not {billions} billion");
    }
    let there = std::fs::read_dir(config("")).unwrap();
    let models = there.filter(|entry| entry.as_ref().unwrap().file_name() != "README.md");
    assert_eq!(models.count(), expected.len());
}

/// As far as the files say; the default plan is that of the preset.
#[test]
fn the_released_files_tell_mask_token_stop_tokens_and_default_plan() {
    for (name, mask, ends, preset) in [
        ("LLaDA-8B-Instruct", 126_336, &[126_081][..], "llada"),
        ("LLaDA-1.5", 126_336, &[126_081], "llada"),
        ("iLLaDA-8B", 5, &[], "llada"),
        ("Dream-v0-Instruct-7B", 151_666, &[151_643], "dream-entropy"),
        (
            "Dream-Coder-v0-Instruct-7B",
            151_666,
            &[151_643],
            "dream-entropy",
        ),
        (
            "DiffuCoder-7B-Instruct",
            151_666,
            &[151_643],
            "dream-entropy",
        ),
        ("DreamOn-v0-7B", 151_666, &[151_643], "dreamon"),
        ("LLaDA-MoE-7B-A1B-Instruct", 156_895, &[156_892], "llada"),
        ("LLaDA2.0-mini", 156_895, &[156_892], "llada2"),
        ("SDAR-4B-Chat", 151_669, &[151_643, 151_645], "sdar-dynamic"),
        ("mdlm-owt", 50_257, &[], "mdlm-ancestral"),
        ("sedd-small", 50_257, &[], "sedd-analytic"),
    ] {
        let checkpoint = Checkpoint::open_dummy(&config(name)).unwrap();
        let spec = checkpoint.spec().unwrap();
        assert_eq!(spec.mask_token(), Some(mask), "{name}");
        assert!(!checkpoint.mask_stands_in(), "{name}");
        assert_eq!(spec.stop_tokens, ends, "{name}");
        let plan = spec.plan(&preset::by_name(preset).unwrap());
        assert_eq!(spec.default_plan, plan, "{name}");
        assert!(!spec.never_stops(), "{name}");
    }
    let spec = |name| {
        Checkpoint::open_dummy(&config(name))
            .unwrap()
            .spec()
            .unwrap()
    };
    let tokens = spec("DreamOn-v0-7B").resize_tokens.unwrap();
    assert_eq!((tokens.expand, tokens.delete), (151_667, 151_643));
    let sdar = spec("SDAR-4B-Chat");
    assert_eq!(
        sdar.attention,
        AttentionPattern::BlockCausal { block_length: 4 }
    );
    assert_eq!(sdar.default_plan.early_stop, EarlyStop::AfterBlock);
    // Without the tokenizer's files nothing names its end.
    assert!(spec("LLaDA2.1-mini").never_stops());
}

/// LLaDA-MoE's published 1.4 billion are without the embedding of 0.32 billion, the others' with it.
#[test]
fn the_active_parameters_of_mixtures_of_experts_are_the_published_ones() {
    for (name, billions) in [
        ("LLaDA-MoE-7B-A1B-Instruct", 1.4 + 0.32),
        ("LLaDA2.0-mini", 1.44),
        ("LLaDA2.0-flash", 6.1),
        ("SDAR-30B-A3B-Chat", 3.3),
        ("SDAR-8B-Chat", 8.19),
    ] {
        let spec = inspect(&config(name), &[])["spec"].clone();
        let active = spec["active_parameters"].as_u64().unwrap() as f64 / 1e9;
        assert!(
            (active / billions - 1.0f64).abs() < 0.03,
            "{name}: {active}"
        );
    }
}

/// 8 bits and a 16-bit scale for 32 weights of the linear layers; the embedding, which is the head too, and
/// the norms stay f32, the head has a copy.
#[test]
fn inspect_says_how_much_memory_each_number_format_takes() {
    let bytes =
        |dtype| inspect(&config("LLaDA-8B-Instruct"), &["--dtype", dtype])["weight_bytes"].clone();
    let parameters = llada(32, 12_288, 126_464, false);
    assert_eq!(bytes("bf16"), 2 * parameters);
    let embedding = 126_464 * 4096;
    let norms = 65 * 4096;
    let linear = parameters - embedding - norms;
    assert_eq!(bytes("q8_0"), 4 * (embedding + norms) + linear / 32 * 34);
}

/// The benchmark's mixture of experts and its dense twin: a row meets as many weights of the one as of the other.
#[test]
fn the_benchmarks_mixture_of_experts_has_the_active_size_of_its_dense_twin() {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/configs");
    let [moe, dense] = ["llada-moe.json", "llada-moe-dense.json"].map(|file| {
        let path = benches.join(file);
        let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let spec = inspect(&path, &[])["spec"].clone();
        let number = |name: &str| spec[name].as_u64().unwrap();
        (config, number("parameters"), number("active_parameters"))
    });
    let size = |name: &str| moe.0[name].as_u64().unwrap();
    let (hidden, layers, experts) = (
        size("hidden_size"),
        size("num_hidden_layers"),
        size("num_experts"),
    );
    let expert = 3 * hidden * size("expert_intermediate_size");
    let idle = layers * (experts - size("num_experts_per_tok")) * expert;
    let routers = layers * experts * hidden;
    assert_eq!(moe.1 - idle - routers, dense.1);
    assert_eq!(moe.2, moe.1 - idle);
    assert_eq!(dense.2, dense.1);
}
