//! Reads the gaps of an infilling's canvas.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::frames::CanvasView;
use super::infill_text::{CutText, Ends, GapVocabulary, provenance};
use super::run::Reader;
use super::wire::{
    ChoiceProbability, CommittedSlot, GapAnswer, GapLength, GapPosition, InfillChoice,
    LengthCandidate, SplicedSlot,
};
use crate::canvas::{Canvas, Commit, Splice};
use crate::engine::StepReport;
use crate::sampling::Logprobs;
use crate::text::Layout;

/// What is known of a gap beforehand, whatever fills it.
pub(super) struct GapHead {
    /// Its name.
    pub name: Option<String>,
    /// Strings before which its text ends.
    pub stops: Arc<[String]>,
    /// The probabilities of its choices, if it has any.
    pub choices: Option<Vec<ChoiceProbability>>,
    /// What decides how many slots it has.
    pub length: GapLength,
}

/// Reads one canvas.
pub(super) struct InfillReader {
    vocabulary: Arc<GapVocabulary>,
    slots: Vec<Range<usize>>,
    layout: Layout,
    gaps: Arc<[GapHead]>,
    /// Those of each slot's last commit, if they are reported or needed.
    logprobs: HashMap<usize, Logprobs>,
    reports_logprobs: bool,
    reports_steps: bool,
}

/// The whole text and its gaps.
pub(super) struct InfillAnswer {
    text: String,
    gaps: Vec<GapAnswer>,
    /// Slots of every gap.
    lengths: Vec<usize>,
    /// How many tokens the gaps were read from, stop tokens and those of stop strings among them.
    read: usize,
    /// The mean log-probability of what was denoised; −∞ if log-probabilities were not asked for.
    mean_logprob: f64,
}

/// What a step changed.
pub(super) struct InfillStep {
    /// The step, from 1.
    pub step: usize,
    /// What it committed.
    pub committed: Vec<CommittedSlot>,
    /// What it masked again.
    pub remasked: Vec<GapPosition>,
    /// What it replaced by masked slots, or removed.
    pub spliced: Vec<SplicedSlot>,
}

impl InfillAnswer {
    /// How many tokens the gaps were read from, stop tokens and those of stop strings among them.
    pub fn read(&self) -> usize {
        self.read
    }

    /// The `index`th filling.
    pub fn choice(self, index: usize, candidates: Option<Vec<LengthCandidate>>) -> InfillChoice {
        InfillChoice {
            index,
            text: self.text,
            gaps: self.gaps,
            candidates,
        }
    }

    /// The answer with the largest mean log-probability, the first of several, and what was tried.
    pub fn best_of(answers: Vec<Self>) -> Option<(Self, Vec<LengthCandidate>)> {
        let best = (0..answers.len()).rev().max_by(|a, b| {
            let mean = |index: usize| answers[index].mean_logprob;
            mean(*a).total_cmp(&mean(*b))
        })?;
        let candidates = answers.iter().enumerate();
        let candidates = candidates
            .map(|(index, answer)| LengthCandidate {
                tokens: answer.lengths.clone(),
                mean_logprob: answer.mean_logprob,
                chosen: index == best,
            })
            .collect();
        answers
            .into_iter()
            .nth(best)
            .map(|answer| (answer, candidates))
    }
}

impl InfillReader {
    /// A reader of `canvas`, which was laid out as `layout` says.
    pub fn new(
        vocabulary: Arc<GapVocabulary>,
        canvas: &Canvas,
        layout: Layout,
        gaps: Arc<[GapHead]>,
        reports_logprobs: bool,
    ) -> Self {
        Self {
            vocabulary,
            slots: canvas.gaps().to_vec(),
            layout,
            gaps,
            logprobs: HashMap::new(),
            reports_logprobs,
            reports_steps: false,
        }
    }

    /// The same, that tells what each step changed.
    pub fn telling_steps(self) -> Self {
        Self {
            reports_steps: true,
            ..self
        }
    }

    /// Shows `canvas`, which this reads.
    pub fn view(&self, canvas: &Canvas) -> CanvasView {
        CanvasView::new(canvas.clone(), self.layout.clone(), self.vocabulary.clone())
    }

    fn position(&self, slot: usize) -> Option<GapPosition> {
        let gap = self.slots.iter().position(|gap| gap.contains(&slot))?;
        Some(GapPosition {
            gap,
            position: slot - self.slots[gap].start,
        })
    }

    /// Follows slots to where they are after a step.
    fn splice(&mut self, splices: &[Splice]) {
        if splices.is_empty() {
            return;
        }
        for gap in &mut self.slots {
            *gap = Splice::resized(splices, gap);
        }
        let logprobs = std::mem::take(&mut self.logprobs).into_iter();
        let moved = logprobs.filter_map(|(slot, of)| Some((Splice::moved(splices, slot)?, of)));
        self.logprobs = moved.collect();
    }

    fn committed(&self, slot: usize, commit: &Commit) -> Option<CommittedSlot> {
        Some(CommittedSlot {
            position: self.position(slot)?,
            token: commit.token,
            text: self.vocabulary.text(commit.token),
            probability: commit.probability,
        })
    }

    /// What a step changed, as slots are before it.
    fn changes(&self, report: &StepReport) -> InfillStep {
        let committed = report.committed.iter();
        let remasked = report.remasked.iter();
        let spliced = report.spliced.iter();
        InfillStep {
            step: report.step,
            committed: committed
                .filter_map(|(slot, commit)| self.committed(*slot, commit))
                .collect(),
            remasked: remasked.filter_map(|slot| self.position(*slot)).collect(),
            spliced: spliced
                .filter_map(|splice| {
                    Some(SplicedSlot {
                        position: self.position(splice.slot)?,
                        masked: splice.count,
                    })
                })
                .collect(),
        }
    }

    fn mean_logprob(&self) -> f64 {
        let slots = self.slots.iter().cloned().flatten();
        let logprobs: Vec<f64> = slots
            .filter_map(|slot| Some(f64::from(self.logprobs.get(&slot)?.token)))
            .collect();
        match logprobs.len() {
            0 => f64::NEG_INFINITY,
            count => logprobs.iter().sum::<f64>() / count as f64,
        }
    }
}

impl Reader for InfillReader {
    type Frame = InfillStep;
    type Answer = InfillAnswer;

    fn step(&mut self, report: &StepReport) -> (Option<InfillStep>, Option<InfillAnswer>) {
        self.logprobs.extend(report.logprobs.iter().cloned());
        let step = self.reports_steps.then(|| self.changes(report));
        self.splice(&report.spliced);
        (step, None)
    }

    fn finish(&mut self, canvas: &Canvas) -> (Option<InfillStep>, InfillAnswer) {
        let mut cuts = Vec::with_capacity(self.slots.len());
        let mut read = 0;
        let open = canvas.open_gap();
        let reading = self.layout.read_with(canvas, |index, tokens| {
            let head = &self.gaps[index];
            let ends = Ends {
                strings: &head.stops,
                at_stop_token: open == Some(index) && head.length != GapLength::Choices,
            };
            let cut = CutText::of(tokens, ends, &self.vocabulary);
            cuts.push((cut.tokens, cut.stop));
            read += cut.read;
            cut.text
        });
        let logprobs = self.reports_logprobs.then_some(&self.logprobs);
        let parts = self.slots.iter().zip(self.gaps.iter());
        let gaps = parts.zip(reading.gaps).zip(cuts).enumerate();
        let gaps = gaps.map(|(index, (((slots, head), gap), (tokens, stop)))| {
            let kept = slots.start..slots.start + tokens;
            let provenance = provenance(canvas, kept, logprobs, &self.vocabulary);
            GapAnswer {
                index,
                name: head.name.clone(),
                text: gap.text,
                tokens: provenance.iter().map(|token| token.token).collect(),
                stop,
                choices: head.choices.clone(),
                length: head.length,
                start: gap.characters.start,
                end: gap.characters.end,
                start_byte: gap.bytes.start,
                end_byte: gap.bytes.end,
                provenance,
            }
        });
        let answer = InfillAnswer {
            gaps: gaps.collect(),
            text: reading.text,
            lengths: self.slots.iter().map(Range::len).collect(),
            read,
            mean_logprob: self.mean_logprob(),
        };
        (None, answer)
    }
}
