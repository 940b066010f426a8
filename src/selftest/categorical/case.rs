//! A batch of rows, run on a machine and by the twin.

use bytemuck::Zeroable;
use candle_core::{Device, Tensor};

use crate::canvas::TokenId;
use crate::kernels::{Argument, Launch, Machine};
use crate::sampling::layout::{Adjustment, Found, LOG_PROBABILITIES, MOST_TOP, NONE, Row, Top};
use crate::sampling::{self, RowParams};
use crate::selftest::Failure;
use crate::selftest::element::Element;

/// What is asked for one row.
#[derive(Debug, Clone)]
pub(in crate::selftest) struct Request {
    pub params: RowParams,
    /// Row of the unconditional logits, and w.
    pub guidance: Option<(usize, f32)>,
    pub adjustments: Vec<Adjustment>,
    pub allowed: Option<Vec<bool>>,
    /// How many of the most probable tokens, and further ones.
    pub log_probabilities: Option<(usize, Vec<TokenId>)>,
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
            allowed: None,
            log_probabilities: None,
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
    fn packed(&self, rows: &[Vec<f32>]) -> Vec<u8> {
        let mut values = Vec::new();
        for row in rows {
            values.resize(values.len().next_multiple_of(self.stride), f32::NAN);
            values.extend(row);
        }
        self.element.encode(&values)
    }

    pub fn run(&self, machine: &mut dyn Machine) -> Result<Output, Failure> {
        let mut rows: Vec<Row> = Vec::new();
        let mut adjustments: Vec<Adjustment> = Vec::new();
        let mut allowed: Vec<u32> = Vec::new();
        let mut of: Vec<TokenId> = Vec::new();
        for request in &self.requests {
            let mut row = Row::new(&request.params);
            if let Some((unconditional, scale)) = request.guidance {
                row.unconditional = unconditional as u32;
                row.guidance = scale + 1.0;
            }
            row.first_adjustment = adjustments.len() as u32;
            row.adjustments = request.adjustments.len() as u32;
            adjustments.extend(&request.adjustments);
            if let Some(bits) = &request.allowed {
                row.allowed = allowed.len() as u32;
                let word = |bits: &[bool]| {
                    let set = (0u32..).zip(bits).filter(|(_, bit)| **bit);
                    set.fold(0, |word, (i, _)| word | 1 << i)
                };
                allowed.extend(bits.chunks(32).map(word));
            }
            if let Some((top, tokens)) = &request.log_probabilities {
                row.flags |= LOG_PROBABILITIES;
                row.top = *top as u32;
                row.first_of = of.len() as u32;
                row.of = tokens.len() as u32;
                of.extend(tokens);
            }
            rows.push(row);
        }
        let mut output = Output {
            found: vec![Found::zeroed(); rows.len()],
            top: vec![Top::zeroed(); rows.len() * MOST_TOP],
            of: vec![0.0; of.len()],
        };
        let kernel =
            self.element
                .kernel(["categorical_f32", "categorical_bf16", "categorical_f16"]);
        let stride = Argument::U64(self.stride as u64);
        machine.launch(
            &Launch::rows(kernel, rows.len(), machine.row_threads()),
            &mut [
                Argument::In(&self.packed(&self.logits)),
                Argument::U64(self.stride as u64),
                Argument::In(&self.packed(&self.unconditional)),
                stride,
                Argument::U32(self.vocab as u32),
                Argument::input(&rows),
                Argument::input(&adjustments),
                Argument::input(&allowed),
                Argument::input(&of),
                Argument::output(&mut output.found),
                Argument::output(&mut output.top),
                Argument::output(&mut output.of),
            ],
        )?;
        Ok(output)
    }

    /// Compares a machine's results with the twin's; the number of rows.
    pub fn check(&self, machine: &mut dyn Machine) -> Result<usize, Failure> {
        let output = self.run(machine)?;
        let mut of = output.of.as_slice();
        for (row, (request, found)) in self.requests.iter().zip(&output.found).enumerate() {
            let count = request
                .log_probabilities
                .as_ref()
                .map_or(0, |(_, of)| of.len());
            let (own_of, rest) = of.split_at(count);
            of = rest;
            let top = &output.top[row * MOST_TOP..][..MOST_TOP];
            self.check_row(row, request, found, top, own_of)
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

    /// A row as guided, and as it is drawn from.
    fn prepared(&self, row: usize, request: &Request) -> (Vec<f32>, Vec<f32>) {
        let mut plain = self.logits[row].clone();
        if let Some((unconditional, scale)) = request.guidance {
            for (c, u) in plain.iter_mut().zip(&self.unconditional[unconditional]) {
                *c = u + (scale + 1.0) * (*c - u);
            }
        }
        let mut shaped = plain.clone();
        for change in &request.adjustments {
            let logit = &mut shaped[change.token as usize];
            *logit = match *logit > 0.0 {
                true => *logit / change.penalty,
                false => *logit * change.penalty,
            } + change.bias;
        }
        if let Some(allowed) = &request.allowed {
            for (logit, allowed) in shaped.iter_mut().zip(allowed) {
                if !allowed {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let excluded = request.params.excluded as usize;
        if request.params.excluded_is_impossible && excluded < self.vocab {
            plain[excluded] = f32::NEG_INFINITY;
        }
        (plain, shaped)
    }

    fn check_row(
        &self,
        row: usize,
        request: &Request,
        found: &Found,
        top: &[Top],
        of: &[f32],
    ) -> Result<(), Failure> {
        let (plain, shaped) = self.prepared(row, request);
        let shaped = Tensor::from_vec(shaped, (1, self.vocab), &Device::Cpu)?;
        let twin = sampling::reduce(&shaped, std::slice::from_ref(&request.params))?.remove(0);
        let (twin, sample) = match (twin, found.sample(&request.params)) {
            (Ok(twin), Ok(sample)) => (twin, sample),
            (Err(twin), Err(sample)) if twin.to_string() == sample.to_string() => return Ok(()),
            (twin, sample) => return Err(Failure::Differs(format!("{sample:?} for {twin:?}"))),
        };
        let differs = |what: &str, given: f32, wanted: f32| {
            Failure::Differs(format!("{what} {given} for {wanted}"))
        };
        if sample.token != twin.token {
            return Err(Failure::Differs(format!(
                "token {} for {}",
                sample.token, twin.token
            )));
        }
        if sample.uniform != twin.uniform {
            return Err(differs("uniform", sample.uniform, twin.uniform));
        }
        for (what, given, wanted, tolerance) in [
            ("probability", sample.probability, twin.probability, 1e-4),
            ("best", sample.best, twin.best, 1e-4),
            ("second", sample.second, twin.second, 1e-4),
            ("entropy", sample.entropy, twin.entropy, 2e-4),
        ] {
            if !is_close(given, wanted, tolerance) {
                return Err(differs(what, given, wanted));
            }
        }
        let Some((asked_top, asked_of)) = &request.log_probabilities else {
            return Ok(());
        };
        let max = plain.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = plain.iter().map(|l| f64::from(l - max).exp()).sum();
        let log_probability = |token: TokenId| {
            let logit = plain.get(token as usize).copied();
            (f64::from(logit.unwrap_or(f32::NEG_INFINITY)) - f64::from(max) - sum.ln()) as f32
        };
        let given = std::iter::once(found.log_probability).chain(of.iter().copied());
        for (given, token) in given.zip(std::iter::once(&twin.token).chain(asked_of)) {
            let wanted = log_probability(*token);
            if !is_close(given, wanted, 1e-4) {
                return Err(differs("log-probability", given, wanted));
            }
        }
        let mut order: Vec<TokenId> = (0..self.vocab as TokenId).collect();
        order.sort_by(|a, b| {
            plain[*b as usize]
                .total_cmp(&plain[*a as usize])
                .then(a.cmp(b))
        });
        for (given, token) in top.iter().zip(order).take(*asked_top) {
            let wanted = log_probability(token);
            if given.token != token || !is_close(given.log_probability, wanted, 1e-4) {
                return Err(Failure::Differs(format!(
                    "{given:?} among the best for {token} of {wanted}"
                )));
            }
        }
        debug_assert_ne!(found.best_token, NONE);
        Ok(())
    }
}

/// Within `tolerance` of the wanted number, or of 1 if that is less; equal if infinite.
fn is_close(given: f32, wanted: f32, tolerance: f32) -> bool {
    given == wanted || (given - wanted).abs() <= tolerance * wanted.abs().max(1e-3).max(0.01)
}
