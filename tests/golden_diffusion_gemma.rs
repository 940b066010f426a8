//! DiffusionGemma against the official implementation: logits, and what a config.json may say.

mod support;

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use support::{TOLERANCE, assert_close, forward_goldens, golden, integers, load, max_difference};
use unmask::canvas::TokenId;
use unmask::models::encoded_forward::{self, EncodedText};
use unmask::models::{
    AttentionPattern, Checkpoint, Corruption, Denoiser, KvPool, KvShape, ModelError, RaggedBatch,
    Segment,
};
use unmask::selftest::goldens::encoded;

const NAME: &str = "diffusion_gemma";
const BLOCK: usize = 8;

/// Appends rows that the encoder reads, at positions from `first` on, after those before them; the pool's slots of
/// positions are `slot_of`.
fn push_encoded(
    batch: &mut RaggedBatch,
    tokens: &[TokenId],
    first: usize,
    begins: usize,
    slot_of: &impl Fn(usize) -> u32,
) -> Range<usize> {
    let slots = first..first + tokens.len();
    let positions: Vec<u32> = slots.clone().map(|slot| slot as u32).collect();
    let pattern = AttentionPattern::EncodedBlocks {
        block_length: BLOCK,
    };
    let segment = Segment {
        allowed: pattern.allowed_among(slots.clone(), slots.end),
        context: (begins..first).map(slot_of).collect(),
        store: slots.map(slot_of).collect(),
        encodes: true,
        ..Segment::default()
    };
    batch.push_segment(tokens, &positions, segment)
}

fn push_block(
    batch: &mut RaggedBatch,
    tokens: &[TokenId],
    first: usize,
    begins: usize,
    signal: Option<Tensor>,
    slot_of: &impl Fn(usize) -> u32,
) -> Range<usize> {
    let positions: Vec<u32> = (first..first + tokens.len())
        .map(|slot| slot as u32)
        .collect();
    let segment = Segment {
        context: (begins..first).map(slot_of).collect(),
        self_conditioning: signal,
        ..Segment::default()
    };
    batch.push_segment(tokens, &positions, segment)
}

#[test]
fn logits_equal_the_official_ones_however_the_prompt_is_split() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    for case in [
        "short_prompt",
        "long_prompt",
        "self_cond",
        "second_block",
        "batch_left_padded",
        "batch_self_cond_mask",
    ] {
        let whole = encoded::logits(&*model, &goldens, case, 64).unwrap();
        assert_close(&whole, &goldens[&format!("{case}.logits")], case);
        for chunk in [1, 3, 9] {
            let parts = encoded::logits(&*model, &goldens, case, chunk).unwrap();
            assert_eq!(max_difference(&parts, &whole), 0.0, "{case} by {chunk}");
        }
    }
}

#[test]
fn the_encoders_last_hidden_states_equal_the_official_ones() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    for case in ["short_prompt", "long_prompt"] {
        let tokens = integers(&goldens[&format!("{case}.input_ids")]);
        let pool = KvPool::new(model.spec(), 64, DType::F32, &Device::Cpu).unwrap();
        let mut batch = RaggedBatch::new();
        push_encoded(&mut batch, &tokens, 0, 0, &|slot| slot as u32);
        let hidden = model.hidden(&batch, Some(&pool)).unwrap();
        let official = &goldens[&format!("{case}.encoder_last_hidden_state")];
        assert_close(&hidden.unsqueeze(0).unwrap(), official, case);
    }
}

#[test]
fn encoding_one_text_and_denoising_after_another_in_one_batch_change_neither() {
    let (model, goldens) = (load(NAME), forward_goldens(NAME));
    let prompt = integers(&goldens["short_prompt.input_ids"]);
    let block = integers(&goldens["short_prompt.decoder_input_ids"]);
    let pool = KvPool::new(model.spec(), 64, DType::F32, &Device::Cpu).unwrap();
    let (here, there) = (|slot: usize| slot as u32, |slot: usize| 32 + slot as u32);
    let mut batch = RaggedBatch::new();
    push_encoded(&mut batch, &prompt, 0, 0, &here);
    model.hidden(&batch, Some(&pool)).unwrap();
    let mut batch = RaggedBatch::new();
    let encoded = push_encoded(&mut batch, &prompt, 0, 0, &there);
    let rows = push_block(&mut batch, &block, prompt.len(), 0, None, &here);
    let hidden = model.hidden(&batch, Some(&pool)).unwrap();
    let part = |rows: Range<usize>| hidden.narrow(0, rows.start, rows.len()).unwrap();
    let logits = model.head(&part(rows)).unwrap().unsqueeze(0).unwrap();
    assert_close(&logits, &goldens["short_prompt.logits"], "block");
    let official = &goldens["short_prompt.encoder_last_hidden_state"];
    assert_close(&part(encoded).unsqueeze(0).unwrap(), official, "prompt");
}

#[test]
fn the_spec_says_what_the_files_say() {
    let model = load(NAME);
    let spec = model.spec();
    assert_eq!(spec.family, NAME);
    assert_eq!(
        spec.attention,
        AttentionPattern::EncodedBlocks {
            block_length: BLOCK
        }
    );
    assert_eq!(
        (spec.corruption, spec.mask_token()),
        (Corruption::Uniform, None)
    );
    assert_eq!(spec.stop_tokens, [502, 504]);
    assert_eq!((spec.vocab_size, spec.max_canvas), (512, 512));
    assert!(spec.self_conditioned && !spec.noise_conditioned);
    let [sliding, full] = [[2, 16], [1, 32]].map(|[heads, head_dim]| KvShape { heads, head_dim });
    assert_eq!(
        [0, 1, 2].map(|layer| spec.kv_shape(layer)),
        [sliding, sliding, full]
    );
    assert_eq!(spec.kv_width(), 2 * (32 + 32 + 32));
}

fn config() -> Value {
    support::json(&golden(NAME).join("config.json"))
}

/// What is made of a config.json: a copy of the checkpoint with it.
fn opened(config: &Value) -> Result<Checkpoint, ModelError> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.json");
    std::fs::write(&file, config.to_string()).unwrap();
    Checkpoint::open_dummy(&file)
}

#[test]
fn both_forms_of_the_config_mean_the_same_network() {
    let per_layer = support::json(&golden(NAME).join("config.per_layer_config.json"));
    let (older, newer) = (opened(&config()).unwrap(), opened(&per_layer).unwrap());
    assert_eq!(older.spec().unwrap(), newer.spec().unwrap());
    assert_eq!(older.shapes().unwrap(), newer.shapes().unwrap());
}

#[test]
fn networks_that_are_not_built_are_refused_by_the_field_that_asks_for_them() {
    let error = |pointer: &str, value: Value| {
        let mut config = config();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[field] = value;
        let error = opened(&config).and_then(|checkpoint| checkpoint.spec().map(drop));
        error.unwrap_err().to_string()
    };
    for (pointer, value, named) in [
        ("/tie_word_embeddings", json!(false), "tie_word_embeddings"),
        ("/canvas_length", json!(0), "canvas_length is 0"),
        ("/canvas_length", json!(null), "canvas_length is missing"),
        ("/text_config/attention_bias", json!(true), "attention_bias"),
        (
            "/text_config/hidden_activation",
            json!("silu"),
            "hidden_activation",
        ),
        (
            "/text_config/use_bidirectional_attention",
            json!("all"),
            "use_bidirectional_attention",
        ),
        (
            "/text_config/num_key_value_heads",
            json!(3),
            "3 key/value heads",
        ),
        ("/text_config/top_k_experts", json!(5), "top_k_experts 5"),
        (
            "/text_config/num_experts",
            json!(null),
            "num_experts is missing",
        ),
        (
            "/text_config/layer_types",
            json!(["full_attention"]),
            "layer_types names 1 layers",
        ),
        (
            "/text_config/layer_types",
            json!(["full_attention", "full_attention", "sliding_attention"]),
            "the last of layer_types",
        ),
        (
            "/text_config/layer_types",
            json!(["chunked", "full_attention", "full_attention"]),
            "\"chunked\"",
        ),
        (
            "/text_config/rope_parameters/full_attention",
            json!({"rope_type": "yarn", "rope_theta": 1e6}),
            "rope_parameters.full_attention.rope_type",
        ),
        (
            "/text_config/rope_parameters/sliding_attention",
            json!({"rope_type": "default"}),
            "rope_parameters.sliding_attention.rope_theta is missing",
        ),
        (
            "/text_config/per_layer_config",
            json!({"2": {"head_dim": 32, "sliding_window": 4}}),
            "per_layer_config.2.sliding_window",
        ),
        (
            "/text_config/per_layer_config",
            json!({"3": {}}),
            "the layer \"3\"",
        ),
        (
            "/text_config/per_layer_config",
            json!({"2": 5}),
            "per_layer_config.2 is 5",
        ),
        (
            "/text_config/per_layer_config",
            json!({"1": {"head_dim": 32}}),
            "layers of one type heads of different head_dim",
        ),
    ] {
        let error = error(pointer, value);
        assert!(error.contains(named), "{pointer}: {error}");
    }
}

/// The files hold a vision tower, which is passed over; what is no part of the model is refused as of any family.
#[test]
fn the_vision_tower_is_passed_over_and_other_tensors_are_not() {
    let checkpoint = Checkpoint::open(&golden(NAME)).unwrap();
    let shapes = checkpoint.shapes().unwrap();
    assert!(shapes.keys().all(|name| !name.contains("vision")));
    let parameters: usize = shapes
        .values()
        .map(|shape| shape.iter().product::<usize>())
        .sum();
    assert_eq!(checkpoint.spec().unwrap().parameters, parameters);

    let directory = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json"] {
        std::fs::copy(golden(NAME).join(file), directory.path().join(file)).unwrap();
    }
    let file = golden(NAME).join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let extra = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    tensors.insert("model.encoder.language_model.extra".into(), extra);
    let file = directory.path().join("model.safetensors");
    candle_core::safetensors::save(&tensors, file).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let error = checkpoint.load(DType::F32, &Device::Cpu).err().unwrap();
    assert!(
        error.to_string().contains("language_model.extra"),
        "{error}"
    );
}

#[test]
fn what_a_network_does_not_take_is_refused() {
    let (model, llada) = (load(NAME), load("llada"));
    let refused = |model: &dyn Denoiser, segment: Segment| {
        let mut batch = RaggedBatch::new();
        batch.push_segment(&[1, 2], &[0, 1], segment);
        model.hidden(&batch, None).unwrap_err().to_string()
    };
    let signal = || Tensor::zeros((2, 64), DType::F32, &Device::Cpu).ok();
    let encoded = || Segment {
        encodes: true,
        ..Segment::default()
    };
    let told = |segment| Segment {
        self_conditioning: signal(),
        ..segment
    };
    assert!(refused(&*llada, encoded()).contains("no encoder"));
    assert!(refused(&*llada, told(Segment::default())).contains("self-conditioning"));
    assert!(refused(&*model, told(encoded())).contains("self-conditioning"));
    let logits = Tensor::zeros((2, 512), DType::F32, &Device::Cpu).unwrap();
    assert!(llada.self_conditioning(&logits).is_err());
    let uniform = model.self_conditioning(&logits).unwrap();
    assert!(
        uniform
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
            > TOLERANCE
    );
}

#[test]
fn texts_without_an_encoder_or_with_blocks_of_several_lengths_are_refused() {
    let (model, llada) = (load(NAME), load("llada"));
    let text = |block: &[TokenId]| EncodedText {
        first: 0,
        encoded: vec![1],
        block: block.to_vec(),
        predicted: None,
    };
    let refused = |model: &dyn Denoiser, texts: &[EncodedText]| {
        let pool = KvPool::new(model.spec(), 16, DType::F32, &Device::Cpu).unwrap();
        let slot_of = |text: usize, slot: usize| (8 * text + slot) as u32;
        let error = encoded_forward::logits(model, texts, 1, &pool, slot_of).unwrap_err();
        error.to_string()
    };
    assert!(refused(&*llada, &[text(&[1, 2])]).contains("encodes no blocks"));
    let several = [text(&[1, 2]), text(&[1])];
    assert!(refused(&*model, &several).contains("blocks of one length"));
    assert!(refused(&*model, &[]).contains("no rows"));
}

#[test]
fn the_command_gives_the_official_logits() {
    let goldens = forward_goldens(NAME);
    let directory = tempfile::tempdir().unwrap();
    let [input, output] = ["input", "output"].map(|name| directory.path().join(name));
    for case in [
        "short_prompt",
        "long_prompt",
        "batch_left_padded",
        "batch_self_cond_mask",
    ] {
        let fields = [
            "input_ids",
            "attention_mask",
            "decoder_input_ids",
            "self_conditioning_logits",
            "self_conditioning_mask",
        ];
        let of_case = |field: &str| goldens.get(&format!("{case}.{field}")).cloned();
        let tensors: HashMap<_, _> = fields
            .into_iter()
            .filter_map(|field| Some((field, of_case(field)?)))
            .collect();
        candle_core::safetensors::save(&tensors, &input).unwrap();
        let ran = std::process::Command::new(env!("CARGO_BIN_EXE_unmask"))
            .args(["forward", "--device", "cpu", "--dtype", "f32", "--model"])
            .arg(golden(NAME))
            .args([
                "--input".as_ref(),
                input.as_os_str(),
                "--output".as_ref(),
                output.as_os_str(),
            ])
            .env_remove("RUST_LOG")
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        let written = candle_core::safetensors::load(&output, &Device::Cpu).unwrap();
        assert_close(
            &written["logits"],
            &goldens[&format!("{case}.logits")],
            case,
        );
    }
}

/// `convert_diffusion_gemma_weights.py` of transformers.
#[test]
fn the_sizes_of_the_conversion_script_make_the_published_numbers_of_weights() {
    let mut config = config();
    config["canvas_length"] = json!(256);
    let kinds: Vec<&str> = (1..=30)
        .map(|layer| match layer % 6 {
            0 => "full_attention",
            _ => "sliding_attention",
        })
        .collect();
    let sizes = json!({
        "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30, "layer_types": kinds,
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2,
        "head_dim": 256, "global_head_dim": 512, "num_experts": 128, "top_k_experts": 8,
        "moe_intermediate_size": 704, "sliding_window": 1024, "vocab_size": 262_144,
        "max_position_embeddings": 262_144,
    });
    let text = config["text_config"].as_object_mut().unwrap();
    text.extend(sizes.as_object().unwrap().clone());
    let spec = opened(&config).unwrap().spec().unwrap();
    let billions = |weights: usize| (weights as f64 / 1e8).round() / 10.0;
    assert_eq!(
        (billions(spec.parameters), billions(spec.active_parameters)),
        (25.3, 3.8)
    );
    assert_eq!(spec.kv_width() * 2, 225_280);
    assert_eq!(spec.default_plan.block_length, Some(256));
    let mut without = config.clone();
    let text = without["text_config"].as_object_mut().unwrap();
    text.remove("global_head_dim");
    text.remove("layer_types");
    assert_eq!(opened(&without).unwrap().spec().unwrap(), spec);
}
