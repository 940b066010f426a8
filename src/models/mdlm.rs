//! MDLM: a diffusion transformer trained on the masked cross-entropy (Sahoo et al., arXiv:2406.07524).
//!
//! `models/dit.py` of kuleshov-group/mdlm; the released kuleshov-group/mdlm-owt embeds σ = 0 at every
//! noise level.

use serde_json::Value;

use crate::decode::preset;
use crate::diffusion::Schedule;
use crate::models::checkpoint::config_error;
use crate::models::dit::{Dit, DitConfig, DitShape, GPT2, LOG_LINEAR_EPS};
use crate::models::fields;
use crate::models::registry::Family;
use crate::models::{ModelError, ModelSpec, generation_config};

/// The registry's line.
pub(super) const FAMILY: Family = Family {
    name: "mdlm",
    architectures: &["MDLM"],
    model_types: &["mdlm"],
    inputs: &["sigma"],
    spec: |config| Ok(read(config)?.1),
    tensors: |config| Ok(read(config)?.0.tensors("backbone.")),
    unused: &[],
    generation_config: generation_config::take_over,
    ends_texts: false,
    expand_token: None,
    tokenizer: Some(GPT2),
    load: |config, spec, weights| {
        let (shape, _) = read(config)?;
        Ok(Box::new(Dit::new(spec, &shape, weights.pp("backbone"))?))
    },
};

/// Reads and checks a `config.json`.
fn read(config: &Value) -> Result<(DitShape, ModelSpec), ModelError> {
    let config: DitConfig = fields::read(config)?;
    let shape = config.shape(true)?;
    let spec = config.spec(FAMILY.name, &shape)?;
    let noise =
        Schedule::table(&[1.0, LOG_LINEAR_EPS]).map_err(|error| config_error(error.to_string()))?;
    let spec = ModelSpec {
        noise_schedule: Some(noise),
        default_plan: preset::mdlm_ancestral(),
        ..spec
    };
    Ok((shape, spec))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::registry::family_of;

    /// kuleshov-group/mdlm-owt
    fn released() -> Value {
        json!({
            "architectures": ["MDLM"], "model_type": "mdlm", "cond_dim": 128, "dropout": 0.1,
            "hidden_dim": 768, "model_length": 1024, "n_blocks": 12, "n_heads": 12,
            "return_dict": false, "time_conditioning": false, "vocab_size": 50258
        })
    }

    #[test]
    fn the_released_model_has_its_published_size_and_mask() {
        let spec = (family_of(&released()).unwrap().spec)(&released()).unwrap();
        assert_eq!(spec.parameters, 169_627_218);
        assert_eq!(spec.mask_token(), Some(50257));
        assert_eq!((spec.head_dim, spec.max_canvas), (64, 1024));
        assert!(!spec.noise_conditioned);
    }

    #[test]
    fn a_model_that_is_told_the_noise_level_has_a_default_plan_with_one() {
        let mut config = released();
        config["time_conditioning"] = true.into();
        let spec = read(&config).unwrap().1;
        assert!(spec.noise_conditioned);
        assert!(spec.check_plan(&spec.default_plan).is_ok());
    }

    #[test]
    fn a_size_that_makes_no_network_is_refused_by_name() {
        for (field, value, word) in [
            ("n_heads", json!(0), "n_heads is 0"),
            ("n_heads", json!(5), "hidden_dim 768"),
            ("vocab_size", json!(0), "vocab_size is 0"),
            ("vocab_size", json!(1u64 << 33), "vocab_size is 8589934592"),
            ("cond_dim", json!(0), "cond_dim is 0"),
            ("mask_token_id", json!(50258), "mask_token_id 50258"),
        ] {
            let mut config = released();
            config[field] = value;
            let error = read(&config).unwrap_err().to_string();
            assert!(error.contains(word), "{field}: {error}");
        }
        let mut config = released();
        config.as_object_mut().unwrap().remove("model_length");
        let error = read(&config).unwrap_err().to_string();
        assert!(error.contains("model_length"), "{error}");
    }
}
