//! `POST /v1/infill`.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::answer::{DiffusionReport, Usage};
use super::diffusion::DiffusionOptions;
use super::frame::StreamedDiffusion;
use super::number::{Integer, Real, Whole};
use super::object::Object;
use super::prompt::{Texts, one_of};
use crate::canvas::TokenId;

/// A request to fill the gaps of a text.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InfillRequest {
    /// The served model's name, if given.
    pub model: Option<String>,
    /// A text with gaps written as `{{8}}`; either this or `segments`.
    pub text: Option<String>,
    /// The text in pieces, some of them gaps.
    pub segments: Option<Vec<Segment>>,
    /// As the plan says if absent.
    pub temperature: Option<Real>,
    /// As the plan says if absent.
    pub top_p: Option<Real>,
    /// Keeps the tokens whose probability is at least this share of the most probable one's: 0 to 1, 0 is off. As the
    /// plan says if absent.
    pub min_p: Option<Real>,
    /// As the plan says if absent; 0 and −1 keep all tokens.
    pub top_k: Option<Integer>,
    /// Fillings; 1 if absent.
    pub n: Option<Whole>,
    /// Random if absent.
    pub seed: Option<Whole>,
    /// What is added to the logits of tokens, by id: −100 to 100.
    #[schema(value_type = Option<HashMap<String, f32>>)]
    pub logit_bias: Option<Map<String, Value>>,
    /// Whether log-probabilities are reported; false if absent.
    pub logprobs: Option<bool>,
    /// Most probable tokens that are reported with each: 0 to 20; 0 if absent.
    pub top_logprobs: Option<Whole>,
    /// Whether to answer with server-sent events. Where lengths of gaps are searched, the answer is the only one.
    pub stream: Option<bool>,
    /// Options of the stream.
    #[schema(value_type = Option<InfillStreamOptions>)]
    pub stream_options: Option<Object<InfillStreamOptions>>,
    /// Another name of `stream_options.diffusion` = `frames`.
    pub diffusing: Option<bool>,
    /// Decode options.
    #[schema(value_type = Option<DiffusionOptions>)]
    pub diffusion: Option<Object<DiffusionOptions>>,
}

/// `stream_options` of an infilling, whose last frame always carries the usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InfillStreamOptions {
    /// Frames of the canvas in the place of those of single steps.
    pub diffusion: Option<StreamedDiffusion>,
}

/// A piece of the text.
#[derive(Debug, Clone, PartialEq)]
pub enum Segment {
    /// Text that stays as it is.
    Text(String),
    /// A gap.
    Gap(GapFields),
}

/// A gap of a segment.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GapFields {
    /// Slots of the gap; with the revision `resize` those that it begins with. Either this, or `max_tokens`, or
    /// `choices`.
    pub tokens: Option<Whole>,
    /// The fewest slots of a gap whose length is to be found; 1 if absent.
    pub min_tokens: Option<Whole>,
    /// The most slots of a gap whose length is to be found: by the network where the plan resizes gaps, else by
    /// trying several.
    pub max_tokens: Option<Whole>,
    /// Texts of which one is to fill the gap.
    pub choices: Option<Vec<String>>,
    /// A regular expression, in the syntax of Rust's `regex`, that the gap's whole text is to match.
    pub regex: Option<String>,
    /// A grammar, GBNF or Lark, of which the gap's whole text is to be one.
    pub grammar: Option<String>,
    /// Strings before which the gap's text ends.
    pub stop: Option<Texts>,
    /// A name that comes back with the answer.
    pub name: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct GapSegment {
    #[schema(value_type = GapFields)]
    gap: Object<GapFields>,
}

impl PartialSchema for Segment {
    fn schema() -> RefOr<Schema> {
        one_of(
            "A piece of the text: fixed text, or a gap.",
            [String::schema(), GapSegment::schema()],
        )
    }
}

impl ToSchema for Segment {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        GapSegment::schemas(schemas);
    }
}

impl<'de> Deserialize<'de> for Segment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SegmentVisitor;
        impl<'de> Visitor<'de> for SegmentVisitor {
            type Value = Segment;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(r#"a string or {"gap": {"tokens": 8}}"#)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Segment, E> {
                Ok(Segment::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Segment, A::Error> {
                let segment = GapSegment::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Segment::Gap(segment.gap.0))
            }
        }
        deserializer.deserialize_any(SegmentVisitor)
    }
}

/// The `object` of an answer.
pub const INFILL_OBJECT: &str = "infill";

/// The `object` of a stream's frames before the answer.
pub const STEP_OBJECT: &str = "infill.step";

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Infill<'a> {
    /// Identifier of the answer.
    pub id: &'a str,
    /// `infill`.
    pub object: &'static str,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The served model's name.
    pub model: &'a str,
    /// The fillings.
    pub choices: Vec<InfillChoice>,
    /// Token counts.
    pub usage: Usage,
    /// What denoising took.
    pub diffusion: DiffusionReport,
}

/// One filling.
#[derive(Debug, Serialize, ToSchema)]
pub struct InfillChoice {
    /// Which filling.
    pub index: usize,
    /// The whole text; outside the gaps, byte for byte what was sent.
    pub text: String,
    /// The gaps in order.
    pub gaps: Vec<GapAnswer>,
    /// If there are gaps whose length was to be found: what was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidates: Option<Vec<LengthCandidate>>,
}

/// A filling by other lengths of the gaps.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LengthCandidate {
    /// Slots of every gap in order.
    pub tokens: Vec<usize>,
    /// The mean log-probability of the tokens of all gaps, each at the step that committed it.
    pub mean_logprob: f64,
    /// Whether it is the filling that is returned: the one with the largest mean.
    pub chosen: bool,
}

/// What fills a gap, and where it stands in the whole text.
#[derive(Debug, Serialize, ToSchema)]
pub struct GapAnswer {
    /// Which gap.
    pub index: usize,
    /// Its name, if it was given one.
    pub name: Option<String>,
    /// Its text.
    pub text: String,
    /// The tokens that begin in its text: a stop token that ends it, those of a stop string and what comes after either
    /// are left out.
    pub tokens: Vec<TokenId>,
    /// The stop string before which it ends, if one came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
    /// What decided how many slots it has.
    pub length: GapLength,
    /// The probability of each choice, in the order in which they were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<ChoiceProbability>>,
    /// Where its text begins, in characters (Unicode scalar values).
    pub start: usize,
    /// Where its text ends, in characters.
    pub end: usize,
    /// Where its text begins, in bytes of UTF-8.
    pub start_byte: usize,
    /// Where its text ends, in bytes of UTF-8.
    pub end_byte: usize,
    /// How each of `tokens` came to be.
    pub provenance: Vec<Provenance>,
}

/// What decides how many slots a gap has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GapLength {
    /// The request.
    Given,
    /// Its choices.
    Choices,
    /// A search: of the lengths that were tried the one of the best filling.
    Searched,
    /// The network, which was trained to expand and remove slots (the revision `resize`).
    Resized,
}

/// How probable a choice is.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChoiceProbability {
    /// Its text.
    pub text: String,
    /// Its share of the probability of all choices. The bias of its tokens counts; `logprob` is without it.
    pub probability: f64,
    /// The model's own log-probability of it, in nats: of one token in its slot, of several each after
    /// those before it.
    pub logprob: f64,
}

/// How a token came to be.
#[derive(Debug, Serialize, ToSchema)]
pub struct Provenance {
    /// The token.
    pub token: TokenId,
    /// Its text by itself; U+FFFD stands for part of a character.
    pub text: String,
    /// Its probability at its step, in [0, 1], by the plan's `basis`: with `model` without temperature or filters,
    /// with `sampling` with them. Bias counts, and of a gap that is held to a form only the tokens allowed there
    /// count; `logprob` is without either. Of a choice's token it is the model's own.
    pub probability: f32,
    /// The score by which it was chosen.
    pub score: f32,
    /// The denoise step, from 1; 0 for a choice, which is made before the first.
    pub step: usize,
    /// How often its slot was masked again before.
    pub remasked: usize,
    /// How often a committed token of its slot was replaced.
    pub edited: usize,
    /// The model's own log-probability of it at its step, in nats, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprob: Option<f32>,
    /// The most probable tokens in its place, best first, if log-probabilities were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<Vec<Alternative>>,
}

/// A token that might have stood in a slot.
#[derive(Debug, Serialize, ToSchema)]
pub struct Alternative {
    /// The token.
    pub token: TokenId,
    /// Its text by itself; U+FFFD stands for part of a character.
    pub text: String,
    /// The model's own log-probability of it, in nats.
    pub logprob: f32,
}

/// A frame of a stream: what one step committed.
#[derive(Debug, Serialize, ToSchema)]
pub struct InfillStep<'a> {
    /// Identifier of the answer.
    pub id: &'a str,
    /// `infill.step`.
    pub object: &'static str,
    /// Which filling.
    pub index: usize,
    /// The denoise step, from 1.
    pub step: usize,
    /// The slots that it committed or edited, in their order on the canvas.
    pub committed: Vec<CommittedSlot>,
    /// The slots that it masked again after that, in their order on the canvas.
    pub remasked: Vec<GapPosition>,
    /// The slots that were replaced by masked ones, or removed, after all that, in their order on the canvas.
    /// Their places, and those above, are as they were before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spliced: Vec<SplicedSlot>,
}

/// A slot that the network expanded or removed.
#[derive(Debug, Serialize, ToSchema)]
pub struct SplicedSlot {
    /// Where it was.
    #[serde(flatten)]
    pub position: GapPosition,
    /// The masked slots in its place: 2, or 0 where it was removed.
    pub masked: usize,
}

/// A slot of a gap.
#[derive(Debug, Serialize, ToSchema)]
pub struct GapPosition {
    /// Which gap.
    pub gap: usize,
    /// Which slot of the gap.
    pub position: usize,
}

/// A slot that a step committed.
#[derive(Debug, Serialize, ToSchema)]
pub struct CommittedSlot {
    /// Where it is.
    #[serde(flatten)]
    pub position: GapPosition,
    /// The token.
    pub token: TokenId,
    /// Its text by itself; U+FFFD stands for part of a character.
    pub text: String,
    /// Its probability, as in `provenance` of the answer.
    pub probability: f32,
}
