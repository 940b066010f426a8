//! The diffusion transformers in shapes that no golden has, with weights of no meaning.

#[path = "support/dit.rs"]
mod dit;
mod support;

use candle_core::{DType, Device, Tensor};
use dit::{batch, from_parts, outputs};
use serde_json::{Value, json};
use support::max_difference;
use unmask::models::registry::family_of;
use unmask::models::{Checkpoint, Denoiser, RaggedBatch};

/// A network of a config.json's shape, with weights that look random and are always the same.
fn arbitrary(config: &Value) -> Box<dyn Denoiser> {
    let shapes = (family_of(config).unwrap().tensors)(config).unwrap();
    let weight = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let count = shape.iter().product();
        let value = |i: usize| ((i * 7919 + index * 104_729) % 997) as f32 / 997.0 - 0.5;
        let values: Vec<f32> = (0..count).map(value).collect();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    from_parts(
        config,
        &shapes.into_iter().enumerate().map(weight).collect(),
    )
}

fn mdlm(time_conditioning: bool) -> Value {
    json!({
        "architectures": ["MDLM"], "vocab_size": 97, "hidden_dim": 36, "cond_dim": 17, "n_blocks": 3,
        "n_heads": 3, "model_length": 29, "time_conditioning": time_conditioning
    })
}

fn bd3lm(adaln: bool, block_size: usize) -> Value {
    json!({
        "architectures": ["BD3LM"], "vocab_size": 61, "hidden_dim": 20, "cond_dim": 5, "n_blocks": 1,
        "n_heads": 1, "model_length": 31, "time_conditioning": true, "adaln": adaln,
        "block_size": block_size, "var_min": false
    })
}

fn sedd(graph: &str, scale_by_sigma: bool) -> Value {
    json!({
        "tokens": 83, "graph": {"type": graph}, "noise": {"type": "loglinear"},
        "model": {
            "hidden_size": 32, "cond_dim": 3, "length": 30, "n_blocks": 2, "n_heads": 8,
            "scale_by_sigma": scale_by_sigma
        }
    })
}

#[test]
fn networks_of_any_shape_give_each_segment_of_a_batch_its_own_output() {
    for config in [
        mdlm(false),
        mdlm(true),
        bd3lm(true, 5),
        bd3lm(false, 40),
        sedd("absorb", true),
        sedd("absorb", false),
        sedd("uniform", false),
    ] {
        let model = arbitrary(&config);
        let vocab = model.spec().vocab_size;
        let segments = [
            (0..29).collect(),
            vec![],
            vec![60],
            (3..20).collect::<Vec<_>>(),
        ];
        let sigmas = [0.01, 1.0, 7.5, 0.9];
        let together = outputs(&*model, &batch(&segments, &sigmas));
        assert_eq!(together.dims(), [47, vocab]);
        let mut start = 0;
        for (tokens, sigma) in segments.iter().zip(sigmas).filter(|(t, _)| !t.is_empty()) {
            let alone = outputs(&*model, &batch(std::slice::from_ref(tokens), &[sigma]));
            let part = together.narrow(0, start, tokens.len()).unwrap();
            let difference = max_difference(&part, &alone);
            assert!(difference < 1e-3, "{config}: {difference}");
            start += tokens.len();
        }
    }
}

#[test]
fn a_batch_that_does_not_fit_the_network_is_refused() {
    let model = arbitrary(&mdlm(false));
    let refused = |batch: &RaggedBatch| model.hidden(batch, None).unwrap_err().to_string();
    assert!(refused(&RaggedBatch::new()).contains("no rows"));
    assert!(refused(&batch(&[vec![97]], &[0.0])).contains("token 97"));
    assert!(refused(&batch(&[vec![0; 30]], &[0.0])).contains("position 29"));
}

#[test]
fn a_checkpoint_whose_tensors_do_not_fit_its_config_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let golden = support::golden("mdlm");
    std::fs::copy(
        golden.join("model.safetensors"),
        directory.path().join("model.safetensors"),
    )
    .unwrap();
    std::fs::write(directory.path().join("config.json"), mdlm(true).to_string()).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let Err(error) = checkpoint.load(DType::F32, &Device::Cpu) else {
        panic!("the checkpoint was loaded");
    };
    assert!(error.to_string().contains("backbone.blocks.0"), "{error}");
}
