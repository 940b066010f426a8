//! What the engine and the server have to know of a model.

mod levels;

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;

use crate::canvas::{Blank, Canvas, TokenId};
use crate::constraint::Vocabulary;
use crate::decode::preset::{self, Preset};
use crate::decode::{
    BlockOrigin, DecodePlan, EarlyStop, Finish, PlanError, Resizable, ResizeTokens, Revision,
};
use crate::diffusion::Schedule;
use crate::models::AttentionPattern;

/// How a block-causal network goes on where a canvas is longer than its context: a block sees the last so many
/// slots up to its end. What they hold of slots that were still seen when they were computed, they keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct SlidingWindow {
    /// Slots that a block sees, its own among them.
    pub slots: usize,
    /// Longest canvas, in slots.
    pub max_canvas: usize,
}

/// How the keys and values of a layer are shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KvShape {
    /// Key/value heads.
    pub heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// The name of a forward process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardProcess {
    /// Noised slots are masked.
    #[default]
    Absorbing,
    /// Noised slots hold any token of the vocabulary with equal probability.
    Uniform,
}

/// The forward process that the network was trained to reverse: what a noised slot becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "corruption", rename_all = "snake_case")]
pub enum Corruption {
    /// The mask token, which is never left again.
    Absorbing {
        /// The mask token.
        mask_token: TokenId,
    },
    /// Any token of the vocabulary with equal probability; no token is a mask.
    Uniform,
}

/// What a row of the network's output, of one entry a token of the vocabulary, says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Parameterisation {
    /// Logits of the clean token. Of a model of the uniform process they are those of p(x_0 | the other
    /// slots): what the slot's own token says of itself, by Bayes' rule, comes on top (UDLM,
    /// arXiv:2412.10193). Of one that denoises [encoded blocks](AttentionPattern::EncodedBlocks) they say it all.
    Logits,
    /// Logits of the clean token, to be read under the substitutions that the network was trained with
    /// (SUBS; MDLM, arXiv:2406.07524, section 3.2.3): the mask token has probability zero, whatever its
    /// logit, and a slot that is not masked keeps its token.
    Subs,
    /// ln s(x, σ): the logarithm of the ratio p_σ(y) / p_σ(x) for every token y in the place of the
    /// row's own (score entropy; SEDD, arXiv:2310.16834). Given by
    /// [`Denoiser::head_rows`](crate::models::Denoiser::head_rows) only. At a masked slot of the absorbing process
    /// s(y) = p(x_0 = y | the other slots) · α / (1 − α), so that log-scores are there logits of the clean token, the
    /// mask token having probability zero.
    LogScore,
}

/// A model's conventions and limits, read from its checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSpec {
    /// The family's name in the registry.
    pub family: &'static str,
    /// Number of weights.
    pub parameters: usize,
    /// Of these, weights that a row meets: all but those of the experts that it does not go to, of which there are
    /// as many in every row.
    pub active_parameters: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Key/value heads, in the layers that are not in `other_layers`.
    pub kv_heads: usize,
    /// Width of one head, in the same.
    pub head_dim: usize,
    /// The layers whose keys and values have another shape, by their number.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub other_layers: BTreeMap<usize, KvShape>,
    /// Width of a row of logits; every token id is below it.
    pub vocab_size: usize,
    /// Longest canvas, in slots, all of which are seen from its end.
    pub max_canvas: usize,
    /// How longer ones are denoised by plans with a
    /// [`sliding_window`](crate::decode::DecodePlan::sliding_window), if the network is sampled so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<SlidingWindow>,
    /// The forward process that the network reverses, and with it the mask token if there is one.
    #[serde(flatten)]
    pub corruption: Corruption,
    /// What the network's output says.
    pub parameterisation: Parameterisation,
    /// The network takes the noise level: every segment of a batch has to give its σ.
    pub noise_conditioned: bool,
    /// The network takes what it predicted in a block's step before
    /// ([`Denoiser::self_conditioning`](crate::models::Denoiser::self_conditioning)).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub self_conditioned: bool,
    /// The noise schedule that such a network was trained with, if the checkpoint's family has one.
    #[serde(serialize_with = "as_text")]
    pub noise_schedule: Option<Schedule>,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<TokenId>,
    /// The tokens by which the network changes the length of gaps, if it was trained to (DreamOn).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize_tokens: Option<ResizeTokens>,
    /// Which slots a slot may attend to.
    pub attention: AttentionPattern,
    /// The logits of slot i are read at row i − shift (at row 0 for the first slots): 0, or 1 for
    /// families that kept the offset of the autoregressive model they were made from.
    pub logit_shift: usize,
    /// How canvases are denoised when a request does not say.
    pub default_plan: DecodePlan,
}

impl ModelSpec {
    /// Whether the default plan would stop early, but no stop token is known at which it could: its texts fill their
    /// gaps.
    pub fn never_stops(&self) -> bool {
        self.default_plan.early_stop != EarlyStop::Never && self.stop_tokens.is_empty()
    }

    /// The shape of the keys and values of `layer`.
    pub fn kv_shape(&self, layer: usize) -> KvShape {
        let usual = KvShape {
            heads: self.kv_heads,
            head_dim: self.head_dim,
        };
        self.other_layers.get(&layer).copied().unwrap_or(usual)
    }

    /// Numbers that are kept of a slot: keys and values of all layers.
    pub fn kv_width(&self) -> usize {
        let shapes = (0..self.layers).map(|layer| self.kv_shape(layer));
        shapes.map(|shape| 2 * shape.heads * shape.head_dim).sum()
    }

    /// The mask token; none for the uniform process.
    pub fn mask_token(&self) -> Option<TokenId> {
        match self.corruption {
            Corruption::Absorbing { mask_token } => Some(mask_token),
            Corruption::Uniform => None,
        }
    }

    /// The tokens that constrained gaps are made of, of which `bytes` gives what each stands for. The mask token
    /// and the token by which a gap grows are not among them.
    pub fn vocabulary<'a>(&self, mut bytes: impl FnMut(TokenId) -> &'a [u8]) -> Vocabulary {
        let expand = self.resize_tokens.map(|tokens| tokens.expand);
        let left_out = [self.mask_token(), expand];
        Vocabulary::new(self.vocab_size, &self.stop_tokens, |token| {
            match left_out.contains(&Some(token)) {
                true => &[],
                false => bytes(token),
            }
        })
    }

    /// The same model denoising block after block of `block_length` slots, each of which sees itself
    /// and those before it, by `plan` with such blocks.
    pub(super) fn block_causal(mut self, block_length: usize, plan: DecodePlan) -> Self {
        self.attention = AttentionPattern::BlockCausal { block_length };
        self.default_plan = DecodePlan {
            block_length: Some(block_length),
            ..plan
        };
        self
    }

    /// The forward process that the network reverses.
    pub fn process(&self) -> ForwardProcess {
        match self.corruption {
            Corruption::Absorbing { .. } => ForwardProcess::Absorbing,
            Corruption::Uniform => ForwardProcess::Uniform,
        }
    }

    /// What the gaps of its canvases begin as.
    pub fn blank(&self) -> Blank {
        match self.corruption {
            Corruption::Absorbing { mask_token } => Blank::Mask(mask_token),
            Corruption::Uniform => Blank::Noise {
                vocab: self.vocab_size,
            },
        }
    }

    /// What a decoder has to know of a network that can change the length of gaps.
    pub fn resizable(&self) -> Option<Resizable> {
        let tokens = self.resize_tokens?;
        Some(Resizable {
            tokens,
            max_canvas: self.max_canvas,
        })
    }

    /// Checks that `plan` is of the network's process and blocks, tells it what it has to know of the noise, and
    /// reads its output as what it is.
    ///
    /// # Errors
    /// Names the choice that the network does not go with.
    pub fn check_plan(&self, plan: &DecodePlan) -> Result<(), PlanError> {
        let invalid = |field, reason: &str| {
            Err(PlanError::Invalid {
                field,
                reason: reason.to_owned(),
            })
        };
        plan.check_blank(self.blank())?;
        if let AttentionPattern::BlockCausal { block_length } = self.attention
            && plan.block_length != Some(block_length)
        {
            return Err(PlanError::Invalid {
                field: "block_length",
                reason: format!(
                    "this model denoises blocks of {block_length} slots and no others; allowed: {block_length}"
                ),
            });
        }
        if let AttentionPattern::EncodedBlocks { block_length } = self.attention {
            self.check_encoded_blocks(plan, block_length)?;
        } else if let Revision::RenoiseRest { .. } = plan.revision {
            return invalid(
                "revision",
                "`renoise_rest` is for models that denoise encoded blocks; allowed: renoise",
            );
        }
        let mut last = plan.commit_last.iter();
        if let Some(token) = last.find(|token| **token as usize >= self.vocab_size) {
            return Err(PlanError::OutOfRange {
                field: "commit_last",
                given: format!("token {token}"),
                allowed: "token ids of the model's vocabulary",
            });
        }
        if plan.is_resizing() && self.resize_tokens.is_none() {
            return invalid(
                "revision",
                "`resize` needs a model with an expand and a delete token, and this one has none",
            );
        }
        self.check_output(plan)?;
        if plan.sliding_window && self.sliding_window.is_none() {
            return invalid(
                "sliding_window",
                "this model's canvases end with its context; allowed: false",
            );
        }
        if self.noise_conditioned && plan.block_length.is_some() {
            if self.attention != AttentionPattern::Bidirectional {
                return invalid(
                    "block_length",
                    "this model is told the noise level, which is that of the whole canvas and of no block",
                );
            }
            if plan.budget.is_by_chance() {
                let others = match self.mask_token() {
                    Some(_) => {
                        ", or take one that goes by counts or scores: even, threshold, factor, entropy_bound, schedule"
                    }
                    None => "",
                };
                return Err(PlanError::Invalid {
                    field: "block_length",
                    reason: format!(
                        "this model is told the noise level, which is that of the whole canvas, and this budget has \
                         times for each block; leave it out{others}"
                    ),
                });
            }
        }
        Ok(())
    }

    /// Checks that `plan` reads the network's output as what it is.
    fn check_output(&self, plan: &DecodePlan) -> Result<(), PlanError> {
        let invalid = |field, reason: &str| {
            Err(PlanError::Invalid {
                field,
                reason: reason.to_owned(),
            })
        };
        let is_by_scores = plan.budget.is_by_scores();
        if let Revision::Edit { .. } = plan.revision
            && self.parameterisation != Parameterisation::Logits
        {
            return invalid(
                "revision",
                "what this model gives for a slot that is not masked says nothing of its clean token, by which it could \
                 be edited; allowed: none, remask",
            );
        }
        if self.parameterisation != Parameterisation::LogScore {
            return match is_by_scores {
                false => Ok(()),
                true => invalid(
                    "budget",
                    "`analytic` and `euler` need a model of log-scores, and this one gives logits; use \
                     `ancestral`",
                ),
            };
        }
        if !is_by_scores && self.mask_token().is_none() {
            return invalid(
                "budget",
                "log-scores of the uniform process are no logits of the clean token, and only `analytic` (preset \
                 sedd-analytic) and `euler` (sedd-euler) can denoise by them",
            );
        }
        let looks_at_zero = plan.budget.is_by_chance()
            && plan.budget.ends_at_zero()
            && plan.finish != Finish::WithLastInterval;
        if looks_at_zero && self.sigma(0.0).is_none_or(|sigma| sigma == 0.0) {
            return invalid(
                "budget",
                "the last step looks at the last time, and at 0 there is no score; allowed: an eps above 0",
            );
        }
        if is_by_scores && plan.sampling.guidance_scale > 0.0 {
            return invalid(
                "guidance_scale",
                "`analytic` and `euler` go by how large scores are, which guidance leaves unsaid; allowed: 0, or \
                 where masks are filled another budget",
            );
        }
        Ok(())
    }

    /// Checks that `plan` goes on from what an encoder left, in whole blocks of `block_length`.
    fn check_encoded_blocks(
        &self,
        plan: &DecodePlan,
        block_length: usize,
    ) -> Result<(), PlanError> {
        let (field, reason) = if plan.block_length != Some(block_length) {
            let reason = format!(
                "this model denoises blocks of {block_length} slots and no others; allowed: {block_length}"
            );
            ("block_length", reason)
        } else if plan.block_origin != BlockOrigin::Gap {
            let reason = "this model's blocks begin where the text ends that its encoder has read; allowed: gap";
            ("block_origin", reason.to_owned())
        } else if !matches!(plan.revision, Revision::RenoiseRest { .. }) {
            let reason = "this model's logits are those of the clean token given the noise as it is, for which only \
                          `renoise_rest` is, as in the preset diffusion-gemma";
            ("revision", reason.to_owned())
        } else if plan.left_context {
            let reason = "this model only goes on from a text; allowed: false";
            ("left_context", reason.to_owned())
        } else {
            return Ok(());
        };
        Err(PlanError::Invalid { field, reason })
    }

    /// The presets that the network goes with.
    pub fn presets(&self) -> Vec<Preset> {
        let mut presets = preset::all();
        presets.retain(|preset| self.check_plan(&self.plan(preset)).is_ok());
        presets
    }

    /// The preset called `name`.
    ///
    /// # Errors
    /// If there is none; the error lists those that the network goes with.
    pub fn preset(&self, name: &str) -> Result<Preset, PlanError> {
        preset::by_name(name).map_err(|_| PlanError::UnknownName {
            field: "preset",
            given: name.to_owned(),
            allowed: self.preset_names(),
        })
    }

    /// Checks that what the network does not go with in `plan`, if there is anything, is not what `preset` brought into
    /// it.
    ///
    /// # Errors
    /// Names the preset, why the network does not go with it, and those that it goes with.
    pub fn check_preset(&self, preset: &Preset, plan: &DecodePlan) -> Result<(), PlanError> {
        let (Err(of_plan), Err(of_preset)) =
            (self.check_plan(plan), self.check_plan(&self.plan(preset)))
        else {
            return Ok(());
        };
        if of_plan != of_preset {
            return Ok(());
        }
        Err(PlanError::Invalid {
            field: "preset",
            reason: format!(
                "{} does not go with this model ({of_preset}); allowed: {}",
                preset.name,
                self.preset_names()
            ),
        })
    }

    fn preset_names(&self) -> String {
        let names: Vec<&str> = self.presets().iter().map(|preset| preset.name).collect();
        names.join(", ")
    }

    /// The plan of `preset` for this model. A network that is block-causal or denoises encoded blocks
    /// keeps its blocks, whose cache is exact; another one takes the preset's, or those of the default plan where
    /// the preset names none, unless the network is told the noise level and the preset's budget has its times. SEDD's
    /// predictors draw every slot of the uniform process anew.
    pub fn plan(&self, preset: &Preset) -> DecodePlan {
        let mut plan = preset.plan().clone();
        let default = &self.default_plan;
        let is_of_canvas = self.noise_conditioned && plan.budget.is_by_chance();
        let names_none = plan.block_length.is_none() && !is_of_canvas;
        if names_none || self.attention != AttentionPattern::Bidirectional {
            plan.block_length = default.block_length;
            plan.block_origin = default.block_origin;
        }
        if self.attention != AttentionPattern::Bidirectional {
            plan.cache = default.cache;
        }
        if self.corruption == Corruption::Uniform && plan.budget.is_by_scores() {
            plan.revision = Revision::Renoise;
        }
        plan
    }

    /// Slots that a block sees by `plan`, its own among them; `None` if it sees all that its attention says.
    pub fn window(&self, plan: &DecodePlan) -> Option<usize> {
        let sliding = self.sliding_window.filter(|_| plan.sliding_window);
        sliding.map(|sliding| sliding.slots)
    }

    /// Slots of the longest canvas for `plan`.
    pub fn longest_canvas(&self, plan: &DecodePlan) -> usize {
        let sliding = self.sliding_window.filter(|_| plan.sliding_window);
        sliding.map_or(self.max_canvas, |sliding| sliding.max_canvas)
    }

    /// Slots of the longest canvas for any plan.
    pub fn canvas_limit(&self) -> usize {
        let sliding = self.sliding_window.map_or(0, |sliding| sliding.max_canvas);
        self.max_canvas.max(sliding)
    }

    /// Slots of a canvas for `plan`, scratch slots included, of which `length` are laid out, the first gap begins at
    /// the first of `gaps` and the last one ends before the end.
    ///
    /// Where blocks are counted from the start of the canvas, a block-causal network needs the block
    /// that the last gap ends in to be whole, as the official samplers lay it out: it has seen no
    /// shorter ones. One that denoises encoded blocks needs whole blocks from the first gap on. Otherwise it is
    /// `length`.
    pub fn canvas_length(&self, plan: &DecodePlan, gaps: Range<usize>, length: usize) -> usize {
        let (start, block_length) = match (self.attention, plan.block_origin) {
            (AttentionPattern::BlockCausal { block_length }, BlockOrigin::Canvas) => {
                (0, block_length)
            }
            (AttentionPattern::EncodedBlocks { block_length }, _) => (gaps.start, block_length),
            _ => return length,
        };
        let in_blocks = gaps.end.saturating_sub(start);
        let whole = in_blocks.checked_next_multiple_of(block_length);
        let end = whole.and_then(|whole| whole.checked_add(start));
        end.map_or(usize::MAX, |end| end.max(length))
    }

    /// Slots of the longest gap, up to `at_most`, that a canvas for `plan` has room for after `fixed` slots;
    /// 0 if there is no room.
    pub fn longest_gap(&self, plan: &DecodePlan, fixed: usize, at_most: usize) -> usize {
        let fits = |gap: &usize| {
            let length = fixed.saturating_add(*gap);
            self.canvas_length(plan, fixed..length, length) <= self.longest_canvas(plan)
        };
        (1..=at_most).rev().find(fits).unwrap_or(0)
    }

    /// Fixed slots that a canvas for `plan` has room for before a gap of `gap` slots; `None` if it has no room for the gap.
    pub fn room_before(&self, plan: &DecodePlan, gap: usize) -> Option<usize> {
        let longest = self.longest_canvas(plan);
        let fits = |fixed: &usize| {
            let length = fixed.saturating_add(gap);
            self.canvas_length(plan, *fixed..length, length) <= longest
        };
        (0..=longest).rev().find(fits)
    }

    /// `canvas` with the scratch slots that `plan` needs: as many slots as
    /// [`ModelSpec::canvas_length`] says.
    pub fn with_scratch(&self, plan: &DecodePlan, canvas: Canvas) -> Canvas {
        let gaps = canvas.gaps();
        let start = gaps.first().map_or(0, |gap| gap.start);
        let end = gaps.last().map_or(0, |gap| gap.end);
        let length = self.canvas_length(plan, start..end, canvas.len());
        canvas.with_scratch(length)
    }
}

fn as_text<S: Serializer>(schedule: &Option<Schedule>, serializer: S) -> Result<S::Ok, S::Error> {
    let text = schedule.as_ref().map(ToString::to_string);
    text.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_causal_slot_sees_its_block_and_those_before_it() {
        let pattern = AttentionPattern::BlockCausal { block_length: 2 };
        let rows = ["110", "110", "111"].concat();
        let expected = rows.chars().map(|bit| bit == '1').collect();
        assert_eq!(pattern.allowed(3), Some(expected));
        assert_eq!(AttentionPattern::Bidirectional.allowed(3), None);
    }

    #[test]
    fn blocks_may_be_counted_from_a_slot_of_the_canvas() {
        let pattern = AttentionPattern::BlockCausal { block_length: 2 };
        let rows = ["1000", "1110", "1110", "1111"].concat();
        let expected: Vec<bool> = rows.chars().map(|bit| bit == '1').collect();
        for start in [1, 3] {
            assert_eq!(pattern.allowed_among(0..4, start).unwrap(), expected);
        }
        assert_eq!(pattern.allowed_among(0..4, 2), pattern.allowed(4));
        let rows = ["110", "110", "111"].concat();
        let expected: Vec<bool> = rows.chars().map(|bit| bit == '1').collect();
        assert_eq!(pattern.allowed_among(1..4, 1).unwrap(), expected);
        assert_eq!(pattern.allowed_among(1..3, 1), None);
    }

    #[test]
    fn a_slot_sees_the_last_slots_of_a_window_and_its_whole_block() {
        let pattern = AttentionPattern::BlockCausal { block_length: 2 };
        let bits = |rows: [&str; 6]| rows.concat().chars().map(|bit| bit == '1').collect();
        for (window, rows) in [
            (
                4,
                ["110000", "110000", "111100", "111100", "001111", "001111"],
            ),
            (
                3,
                ["110000", "110000", "011100", "011100", "000111", "000111"],
            ),
            (
                1,
                ["110000", "110000", "001100", "001100", "000011", "000011"],
            ),
        ] {
            let expected: Vec<bool> = bits(rows);
            assert_eq!(
                pattern.allowed_within(Some(window), 0..6, 0),
                Some(expected)
            );
        }
        let all = pattern.allowed_within(Some(6), 0..6, 0);
        assert_eq!(all, pattern.allowed(6));
    }
}
