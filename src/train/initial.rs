//! The checkpoint that a run starts from, instead of random weights.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::config::TrainConfig;
use super::error::TrainError;
use super::layout::{Layout, NetworkShape};
use super::tokenizer;
use crate::models::llada::LladaConfig;
use crate::models::{Checkpoint, ForwardProcess, ModelError};

/// A checkpoint in the LLaDA architecture, opened: its shape and its tokenizer read, its weights not yet.
pub struct Initial {
    path: PathBuf,
    checkpoint: Checkpoint,
    shape: NetworkShape,
    process: ForwardProcess,
    tokenizer: Tokenizer,
}

impl Initial {
    /// Opens the checkpoint in a directory.
    ///
    /// # Errors
    /// [`TrainError::Init`] when it cannot be read, or holds a network or a vocabulary that training does not
    /// build.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let refused = |reason: String| TrainError::Init {
            path: path.to_path_buf(),
            reason,
        };
        let failed = |error: ModelError| refused(error.to_string());
        let checkpoint = Checkpoint::open(path).map_err(failed)?;
        let family = checkpoint.spec().map_err(failed)?.family;
        if family != "llada" {
            return Err(refused(format!(
                "it is a {family} model; training builds networks of the family llada only"
            )));
        }
        let config = LladaConfig::from_json(checkpoint.config()).map_err(failed)?;
        if config.kv_heads() != config.n_heads {
            return Err(refused(format!(
                "n_kv_heads is {}; training builds networks with as many key/value heads as heads, here {}",
                config.kv_heads(),
                config.n_heads
            )));
        }
        let tokenizer = tokenizer::load(&path.join("tokenizer.json"))?;
        let vocab = tokenizer.get_vocab_size(true);
        if config.rows() != vocab || config.vocab_size != vocab {
            return Err(refused(format!(
                "its tokenizer has {vocab} tokens and its network {} (vocab_size {}); they must be as many",
                config.rows(),
                config.vocab_size
            )));
        }
        let specials = tokenizer::special_tokens(&tokenizer)?;
        for (field, configured, named) in [
            ("mask_token_id", vec![config.mask_token_id], specials.mask),
            ("eos_token_id", config.eos_token_id.clone(), specials.end),
            (
                "pad_token_id",
                Vec::from_iter(config.pad_token_id),
                specials.pad,
            ),
        ] {
            if let Some(id) = configured.iter().find(|id| **id != named) {
                return Err(refused(format!(
                    "{field} of config.json is {id}, but its tokenizer's is {named}"
                )));
            }
        }
        let shape = NetworkShape {
            vocab,
            context: config.max_sequence_length,
            hidden: config.d_model,
            layers: config.n_layers,
            heads: config.n_heads,
            mlp: config.mlp_hidden(),
            tied: config.weight_tying,
            rope_theta: config.rope_theta,
            norm_eps: config.rms_norm_eps,
        };
        Ok(Self {
            path: path.to_path_buf(),
            checkpoint,
            shape,
            process: config.unmask_process,
            tokenizer,
        })
    }

    /// The network's shape.
    pub fn shape(&self) -> &NetworkShape {
        &self.shape
    }

    /// The forward process that the checkpoint was trained on. A run may train it on another one.
    pub fn process(&self) -> ForwardProcess {
        self.process
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The shape of a run by `config` that starts from this checkpoint: the checkpoint's, with the
    /// window length of the run.
    ///
    /// # Errors
    /// [`TrainError::Setting`] names the first setting that asks for another network.
    pub fn shape_for(&self, config: &TrainConfig) -> Result<NetworkShape, TrainError> {
        let asked = config.shape(self.shape.vocab);
        let held = &self.shape;
        let vocab = config.vocab_size.unwrap_or(held.vocab);
        for (field, asked, held) in [
            ("layers", asked.layers.to_string(), held.layers.to_string()),
            ("hidden", asked.hidden.to_string(), held.hidden.to_string()),
            ("heads", asked.heads.to_string(), held.heads.to_string()),
            ("mlp-hidden", asked.mlp.to_string(), held.mlp.to_string()),
            ("tie-head", asked.tied.to_string(), held.tied.to_string()),
            ("vocab-size", vocab.to_string(), held.vocab.to_string()),
        ] {
            if asked != held {
                return Err(TrainError::Setting {
                    field,
                    given: asked,
                    allowed: format!("{held}, as the checkpoint {} has it", self.path.display()),
                });
            }
        }
        Ok(NetworkShape {
            context: config.context,
            ..self.shape.clone()
        })
    }

    /// The tokenizer for a run, where `given` is the one asked for beside the checkpoint.
    ///
    /// # Errors
    /// [`TrainError::Init`] when they are not of the same vocabulary.
    pub fn tokenizer_for(&self, given: Option<&Tokenizer>) -> Result<Tokenizer, TrainError> {
        let held = self.tokenizer.get_vocab(true);
        if given.is_some_and(|given| given.get_vocab(true) != held) {
            return Err(TrainError::Init {
                path: self.path.clone(),
                reason: "the given tokenizer has another vocabulary; leave it out to use the checkpoint's"
                    .into(),
            });
        }
        Ok(self.tokenizer.clone())
    }

    /// The weights, by `layout`, which must be that of this checkpoint's shape.
    ///
    /// # Errors
    /// [`TrainError::Init`] when the weight files do not hold the network of config.json, or numbers that
    /// are not finite.
    pub fn weights(&self, layout: &Layout) -> Result<Vec<f32>, TrainError> {
        let refused = |reason: String| TrainError::Init {
            path: self.path.clone(),
            reason,
        };
        let wanted = layout.parameters.iter();
        let weights = self
            .checkpoint
            .values(wanted.map(|parameter| (parameter.name.as_str(), parameter.shape.as_slice())))
            .map_err(|error| refused(error.to_string()))?;
        match weights.iter().all(|weight| weight.is_finite()) {
            true => Ok(weights),
            false => Err(refused("its weights are not all finite numbers".into())),
        }
    }
}
