//! `POST /infill`, as llama.cpp's server has it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::diffusion::DiffusionOptions;
use super::number::{Integer, Real, Whole};
use super::object::Object;
use super::prompt::Texts;
use crate::canvas::TokenId;

/// A request to fill the gap at an editor's cursor.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LlamaInfillRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// The text before the gap.
    pub input_prefix: Option<String>,
    /// The text after the gap.
    pub input_suffix: Option<String>,
    /// Other texts, which go before the prefix in their order.
    #[schema(value_type = Option<Vec<ExtraInput>>)]
    pub input_extra: Option<Vec<Object<ExtraInput>>>,
    /// Text between prefix and gap: the line up to the cursor.
    pub prompt: Option<String>,
    /// Slots of the gap; 128 if absent. At 0 nothing is filled.
    pub n_predict: Option<Whole>,
    /// The filling ends before a line that is indented less; 0 if absent. A stream is then one frame.
    pub n_indent: Option<Whole>,
    /// As the plan says if absent.
    pub temperature: Option<Real>,
    /// As the plan says if absent.
    pub top_p: Option<Real>,
    /// Keeps the tokens whose probability is at least this share of the most probable one's: 0 to 1, 0 is off. As the
    /// plan says if absent.
    pub min_p: Option<Real>,
    /// As the plan says if absent; 0 and −1 keep all tokens.
    pub top_k: Option<Integer>,
    /// Random if absent or −1.
    pub seed: Option<Integer>,
    /// Strings that end the filling.
    pub stop: Option<Texts>,
    /// A grammar, GBNF or Lark, of which the whole filling is to be a text; an empty one is none.
    pub grammar: Option<String>,
    /// A JSON Schema by which the filling is valid.
    #[schema(value_type = Option<Object>)]
    pub json_schema: Option<Value>,
    /// Whether to answer with server-sent events.
    pub stream: Option<bool>,
    /// Whether the answer holds the token ids; false if absent.
    pub return_tokens: Option<bool>,
    /// The only fields that the answer is to hold, if any are named; a nested one is written `timings/prompt_n`.
    /// In a stream they are those of the last frame.
    pub response_fields: Option<Vec<String>>,
    /// Decode options.
    #[schema(value_type = Option<DiffusionOptions>)]
    pub diffusion: Option<Object<DiffusionOptions>>,
    /// The slot of llama.cpp's that is to answer. It has no effect: there are none here.
    #[expect(dead_code, reason = "plug-ins send it, and no answer depends on it")]
    pub id_slot: Option<Integer>,
    /// Whether llama.cpp keeps the prompt's keys and values for the next request. It has no effect: what is
    /// cached is said by `diffusion.cache`.
    #[expect(dead_code, reason = "plug-ins send it, and no answer depends on it")]
    pub cache_prompt: Option<bool>,
    /// How long llama.cpp may read the prompt. It has no effect: a prompt is not read apart from its gap.
    #[expect(dead_code, reason = "plug-ins send it, and no answer depends on it")]
    pub t_max_prompt_ms: Option<Integer>,
    /// After so many milliseconds of denoising the filling ends as soon as what is final of it has a line break; without
    /// such a limit if absent, 0 or less, and with a form. Little is final of a gap that is denoised as one block
    /// before its end.
    pub t_max_predict_ms: Option<Integer>,
    /// The order of llama.cpp's samplers. It has no effect: `diffusion.filter_order` says whether top-k or top-p
    /// comes first.
    #[expect(dead_code, reason = "plug-ins send it, and no answer depends on it")]
    pub samplers: Option<Value>,
    /// Not supported but at 1, and so are the following at the values at which llama.cpp's samplers do nothing.
    pub repeat_penalty: Option<Real>,
    /// Not supported but at 0.
    pub presence_penalty: Option<Real>,
    /// Not supported but at 0.
    pub frequency_penalty: Option<Real>,
    /// Not supported but at 1.
    pub typical_p: Option<Real>,
    /// Not supported but at −1.
    pub top_n_sigma: Option<Real>,
    /// Not supported but at 0.
    pub dynatemp_range: Option<Real>,
    /// Not supported but at 0.
    pub dry_multiplier: Option<Real>,
    /// Not supported but at 0.
    pub xtc_probability: Option<Real>,
    /// Not supported but at 0.
    pub mirostat: Option<Real>,
    /// Not supported but at 0.
    pub min_keep: Option<Real>,
    /// Not supported but at 0: text that does not fit is left out at its far ends.
    pub n_keep: Option<Real>,
    /// Not supported but at 0.
    pub n_probs: Option<Real>,
    /// Not supported but at false.
    pub ignore_eos: Option<Value>,
    /// Not supported but when empty.
    pub logit_bias: Option<Value>,
    /// Not supported but when empty.
    pub lora: Option<Value>,
    /// Not supported but at false.
    pub timings_per_token: Option<Value>,
    /// Not supported but at false.
    pub return_progress: Option<Value>,
    /// Not supported but at false.
    pub post_sampling_probs: Option<Value>,
    /// Says how a sampler works that is not supported, and has no effect; so do the following.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub repeat_last_n: Option<Integer>,
    /// It has no effect.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub dynatemp_exponent: Option<Real>,
    /// It has no effect.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub dry_base: Option<Real>,
    /// It has no effect.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub dry_allowed_length: Option<Integer>,
    /// It has no effect.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub dry_penalty_last_n: Option<Integer>,
    /// It has no effect.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// It has no effect.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub xtc_threshold: Option<Real>,
    /// It has no effect.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub mirostat_tau: Option<Real>,
    /// It has no effect.
    #[expect(dead_code, reason = "clients send it, and no answer depends on it")]
    pub mirostat_eta: Option<Real>,
}

/// A text from elsewhere.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtraInput {
    /// The file that it is from.
    pub filename: Option<String>,
    /// The text.
    pub text: Option<String>,
    /// When the editor took it up. It has no effect: the texts keep the order in which they are given.
    #[expect(dead_code, reason = "plug-ins send it, and no answer depends on it")]
    pub time: Option<Value>,
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct LlamaInfill<'a> {
    /// Always 0.
    #[schema(required = false)]
    pub index: usize,
    /// The filling; in the last chunk of a stream, what is new of it.
    #[schema(required = false)]
    pub content: String,
    /// Its token ids, if they were asked for.
    #[schema(required = false)]
    pub tokens: Vec<TokenId>,
    /// Always −1.
    #[schema(required = false)]
    pub id_slot: i32,
    /// Always true.
    #[schema(required = false)]
    pub stop: bool,
    /// The served model's name.
    #[schema(required = false)]
    pub model: &'a str,
    /// Tokens that the filling was read from.
    #[schema(required = false)]
    pub tokens_predicted: usize,
    /// Fixed tokens.
    #[schema(required = false)]
    pub tokens_evaluated: usize,
    /// Always 0.
    #[schema(required = false)]
    pub tokens_cached: usize,
    /// How it was filled.
    #[schema(required = false)]
    pub generation_settings: GenerationSettings,
    /// Whether the filling has a line break.
    #[schema(required = false)]
    pub has_new_line: bool,
    /// Whether some of the given text did not fit the model's context and was left out.
    #[schema(required = false)]
    pub truncated: bool,
    /// `limit`, `eos` or `word`.
    #[schema(required = false)]
    pub stop_type: &'static str,
    /// The stop string that ended it, or nothing.
    #[schema(required = false)]
    pub stopping_word: String,
    /// Times.
    #[schema(required = false)]
    pub timings: Timings,
}

/// How a gap was filled.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct GenerationSettings {
    /// Slots of the gap.
    pub n_predict: usize,
    /// The seed.
    pub seed: u64,
    /// The temperature.
    pub temperature: f32,
    /// The k of top-k; 0 without.
    pub top_k: usize,
    /// The p of top-p; 1 without.
    pub top_p: f32,
    /// The p of min-p; 0 without.
    pub min_p: f32,
    /// Strings that end the filling.
    pub stop: Vec<String>,
    /// Whether the answer is a stream.
    pub stream: bool,
}

/// Times of a filling. A prompt is not processed apart from its gap: its time is 0.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct Timings {
    /// Fixed tokens.
    pub prompt_n: usize,
    /// 0.
    pub prompt_ms: f64,
    /// 0.
    pub prompt_per_token_ms: f64,
    /// 0.
    pub prompt_per_second: f64,
    /// Tokens that the filling was read from.
    pub predicted_n: usize,
    /// Time of denoising, in milliseconds.
    pub predicted_ms: f64,
    /// Of it for each token.
    pub predicted_per_token_ms: f64,
    /// Tokens a second.
    pub predicted_per_second: f64,
}

/// A chunk of a stream but the last.
#[derive(Debug, Serialize, ToSchema)]
pub struct LlamaChunk {
    /// Always 0.
    pub index: usize,
    /// What is new.
    pub content: String,
    /// Always empty.
    pub tokens: Vec<TokenId>,
    /// Always false.
    pub stop: bool,
    /// Always −1.
    pub id_slot: i32,
}
