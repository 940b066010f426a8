//! `unmask forward`.

use std::path::Path;
use std::process::Output;

use candle_core::{DType, Device};

use crate::support::{golden, max_difference};
use crate::{llada, unmask};

fn forward(input: &Path, output: &Path) -> Output {
    unmask(&[
        "forward",
        "--model",
        &llada(),
        "--input",
        input.to_str().unwrap(),
        "--output",
        output.to_str().unwrap(),
    ])
}

#[test]
fn forward_writes_the_official_logits() {
    let goldens =
        candle_core::safetensors::load(golden("llada").join("forward.safetensors"), &Device::Cpu)
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    for (case, tensors) in [
        ("case0", &[("input_ids", "input_ids")][..]),
        (
            "case1",
            &[
                ("input_ids", "input_ids"),
                ("attention_mask", "attention_mask"),
            ],
        ),
        (
            "case3",
            &[
                ("input_ids", "input_ids"),
                ("allowed_mask", "attention_bias"),
            ],
        ),
    ] {
        let inputs = tensors
            .iter()
            .map(|(name, golden)| (*name, goldens[&format!("{case}.{golden}")].clone()))
            .collect();
        candle_core::safetensors::save(&inputs, &input).unwrap();
        let run = forward(&input, &output);
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
        let logits = candle_core::safetensors::load(&output, &Device::Cpu)
            .unwrap()
            .remove("logits")
            .unwrap();
        assert_eq!(logits.dtype(), DType::F32);
        let difference = max_difference(&logits, &goldens[&format!("{case}.logits")]);
        assert!(difference < 1e-4, "{case}: {difference}");
    }
    let unused = (
        "sigma",
        candle_core::Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap(),
    );
    let inputs = [("input_ids", goldens["case0.input_ids"].clone()), unused];
    candle_core::safetensors::save(&inputs.into(), &input).unwrap();
    let error = String::from_utf8(forward(&input, &output).stderr).unwrap();
    assert!(error.contains("sigma is not used"), "{error}");
}
