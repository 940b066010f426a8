//! A batch of rows, run on a machine and by the twin.

use bytemuck::Zeroable;
use candle_core::{Device, Tensor};

use crate::canvas::TokenId;
use crate::kernels::{Argument, Launch, Machine};
use crate::sampling::layout::{self, Adjustment, Found, MOST_TOP, Top};
use crate::sampling::{self, Guidance, Logprobs, RowParams, RowSample, SamplingError};
use crate::selftest::Failure;
use crate::selftest::element::Element;

/// What is asked for one row.
#[derive(Debug, Clone)]
pub(in crate::selftest) struct Request {
    pub params: RowParams,
    /// Row of the unconditional logits, and w.
    pub guidance: Option<(usize, f32)>,
    pub adjustments: Vec<Adjustment>,
}

/// Rows of logits and what is asked of them.
pub(in crate::selftest) struct Batch {
    element: Element,
    vocab: usize,
    stride: usize,
    /// `[rows][vocab]`, rounded to the element.
    pub logits: Vec<Vec<f32>>,
    unconditional: Vec<Vec<f32>>,
    pub requests: Vec<Request>,
}

/// What a machine found.
pub(in crate::selftest) struct Output {
    pub found: Vec<Found>,
    pub top: Vec<Top>,
    pub of: Vec<f32>,
}

impl Request {
    pub fn plain(params: RowParams) -> Self {
        Self {
            params,
            guidance: None,
            adjustments: Vec::new(),
        }
    }
}

impl Batch {
    pub fn new(
        element: Element,
        vocab: usize,
        stride: usize,
        logits: Vec<Vec<f32>>,
        requests: Vec<Request>,
    ) -> Self {
        let logits = logits.iter().map(|row| element.round(row)).collect();
        Self {
            element,
            vocab,
            stride,
            logits,
            unconditional: Vec::new(),
            requests,
        }
    }

    pub fn set_unconditional(&mut self, logits: Vec<Vec<f32>>) {
        self.unconditional = logits.iter().map(|row| self.element.round(row)).collect();
    }

    /// Rows `stride` apart, without anything after the last; what lies between is NaN.
    fn packed(&self, rows: &[Vec<f32>], stride: usize) -> Vec<u8> {
        let mut values = Vec::new();
        for row in rows {
            values.resize(values.len().next_multiple_of(stride), f32::NAN);
            values.extend(row);
        }
        self.element.encode(&values)
    }

    pub fn run(&self, machine: &mut dyn Machine) -> Result<Output, Failure> {
        let mut batch = layout::Batch::new(&self.params(), self.vocab);
        for (row, request) in batch.rows.iter_mut().zip(&self.requests) {
            if let Some((unconditional, scale)) = request.guidance {
                row.unconditional = unconditional as u32;
                row.guidance = scale + 1.0;
            }
            if !request.adjustments.is_empty() {
                row.first_adjustment = batch.adjustments.len() as u32;
                row.adjustments = request.adjustments.len() as u32;
                batch.adjustments.extend(&request.adjustments);
            }
        }
        let layout::Batch {
            rows,
            adjustments,
            allowed,
            of,
        } = &batch;
        let mut output = Output {
            found: vec![Found::zeroed(); rows.len()],
            top: vec![Top::zeroed(); rows.len() * MOST_TOP],
            of: vec![0.0; of.len()],
        };
        let kernel =
            self.element
                .kernel(["categorical_f32", "categorical_bf16", "categorical_f16"]);
        // Not those of the conditional logits, whose rows may be aligned where these are not.
        let unconditional_stride = self.stride + 5;
        // SAFETY: the parameters of the kernel; as many rows of logits as of parameters, which name entries of the
        // lists and rows of the unconditional logits, and a place for every result.
        unsafe {
            machine.launch(
                &Launch::rows(kernel, rows.len(), machine.row_threads()),
                &mut [
                    Argument::In(&self.packed(&self.logits, self.stride)),
                    Argument::U64(self.stride as u64),
                    Argument::In(&self.packed(&self.unconditional, unconditional_stride)),
                    Argument::U64(unconditional_stride as u64),
                    Argument::U32(self.vocab as u32),
                    Argument::input(rows),
                    Argument::input(adjustments),
                    Argument::input(allowed),
                    Argument::input(of),
                    Argument::output(&mut output.found),
                    Argument::output(&mut output.top),
                    Argument::output(&mut output.of),
                ],
            )
        }?;
        Ok(output)
    }

    /// Compares a machine's results with the twin's; the number of rows.
    pub fn check(&self, machine: &mut dyn Machine) -> Result<usize, Failure> {
        let output = self.run(machine)?;
        let params = self.params();
        let batch = layout::Batch::new(&params, self.vocab);
        let samples = batch.samples(&params, &output.found, &output.top, &output.of);
        for (row, (request, sample)) in self.requests.iter().zip(samples).enumerate() {
            self.check_row(row, request, sample)
                .map_err(|failure| match failure {
                    Failure::Differs(what) => Failure::Differs(format!(
                        "vocabulary of {} {:?}, stride {}, row {row}, {request:?}: {what}",
                        self.vocab, self.element, self.stride
                    )),
                    other => other,
                })?;
        }
        Ok(self.requests.len())
    }

    fn params(&self) -> Vec<RowParams> {
        let requests = self.requests.iter();
        requests.map(|request| request.params.clone()).collect()
    }

    /// A row as guided, and as it is drawn from.
    fn prepared(&self, row: usize, request: &Request) -> Result<(Vec<f32>, Vec<f32>), Failure> {
        let mut plain = self.logits[row].clone();
        if let Some((unconditional, scale)) = request.guidance {
            let tensor = |row: &[f32]| Tensor::from_slice(row, (1, self.vocab), &Device::Cpu);
            let guidance = Guidance {
                unconditional: tensor(&self.unconditional[unconditional])?,
                scales: vec![Some(scale)],
            };
            plain = guidance.apply(&tensor(&plain)?)?.flatten_all()?.to_vec1()?;
        }
        let mut shaped = plain.clone();
        for change in &request.adjustments {
            let logit = &mut shaped[change.token as usize];
            *logit = match *logit > 0.0 {
                true => *logit / change.penalty,
                false => *logit * change.penalty,
            } + change.bias;
        }
        let excluded = request.params.excluded as usize;
        if request.params.excluded_is_impossible && excluded < self.vocab {
            plain[excluded] = f32::NEG_INFINITY;
        }
        Ok((plain, shaped))
    }

    fn check_row(
        &self,
        row: usize,
        request: &Request,
        sample: Result<RowSample, SamplingError>,
    ) -> Result<(), Failure> {
        let (plain, shaped) = self.prepared(row, request)?;
        // Log-probabilities are of the row as guided, all else of the row as adjusted.
        let twin = self.twin(shaped, &request.params)?;
        let twin = twin.map(|mut twin| {
            let asked = request.params.logprobs.as_ref();
            twin.logprobs =
                asked.map(|asked| Logprobs::of_row(&plain, twin.token, twin.most_probable, asked));
            twin
        });
        compare(&sample, &twin)
    }

    fn twin(
        &self,
        logits: Vec<f32>,
        params: &RowParams,
    ) -> Result<Result<RowSample, SamplingError>, Failure> {
        let logits = Tensor::from_vec(logits, (1, self.vocab), &Device::Cpu)?;
        Ok(sampling::reduce(&logits, None, std::slice::from_ref(params))?.remove(0))
    }
}

/// Fails unless what was found for a row is what the twin finds: the same token, and numbers close to the twin's.
pub(in crate::selftest) fn compare(
    found: &Result<RowSample, SamplingError>,
    twin: &Result<RowSample, SamplingError>,
) -> Result<(), Failure> {
    let is_equal = match (found, twin) {
        (Ok(found), Ok(twin)) => {
            let numbers = [
                (found.probability, twin.probability, 1e-4),
                (found.best, twin.best, 1e-4),
                (found.second, twin.second, 1e-4),
                (found.entropy, twin.entropy, 2e-4),
            ];
            let logprobs = match (&found.logprobs, &twin.logprobs) {
                (Some(found), Some(twin)) => are_close(found, twin),
                (None, None) => true,
                _ => false,
            };
            (found.token, found.most_probable, found.uniform)
                == (twin.token, twin.most_probable, twin.uniform)
                && numbers
                    .iter()
                    .all(|(a, b, tolerance)| is_close(*a, *b, *tolerance))
                && logprobs
        }
        (Err(found), Err(twin)) => found.to_string() == twin.to_string(),
        _ => false,
    };
    match is_equal {
        true => Ok(()),
        false => Err(Failure::Differs(format!("{found:?} for {twin:?}"))),
    }
}

fn are_close(given: &Logprobs, wanted: &Logprobs) -> bool {
    let numbers = |logprobs: &Logprobs| -> Vec<f32> {
        let top = logprobs.top.iter().map(|(_, p)| *p);
        let of = logprobs.of.iter().copied();
        [logprobs.token, logprobs.most_probable]
            .into_iter()
            .chain(top)
            .chain(of)
            .collect()
    };
    let tokens = |logprobs: &Logprobs| -> Vec<TokenId> {
        logprobs.top.iter().map(|(token, _)| *token).collect()
    };
    let (given_numbers, wanted_numbers) = (numbers(given), numbers(wanted));
    let mut pairs = given_numbers.iter().zip(&wanted_numbers);
    tokens(given) == tokens(wanted)
        && given_numbers.len() == wanted_numbers.len()
        && pairs.all(|(given, wanted)| is_close(*given, *wanted, 1e-4))
}

/// Within `tolerance` of the wanted number, or of 1 if that is less; equal if infinite.
fn is_close(given: f32, wanted: f32, tolerance: f32) -> bool {
    given == wanted || (given - wanted).abs() <= tolerance * wanted.abs().max(1e-3).max(0.01)
}
