//! Noise schedules: how much of the clean text is left at time `t`.

/// A noise schedule in continuous time, t ∈ [0, 1], by its survival probability α(t): the chance
/// that a token is still clean at time t. α(0) = 1 and α(1) = 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// α(t) = 1 − t, the log-linear schedule of MDLM (Sahoo et al., arXiv:2406.07524) and LLaDA.
    LogLinear,
}

impl Schedule {
    /// α(t), in [0, 1].
    pub fn alpha(&self, t: f64) -> f64 {
        match self {
            Schedule::LogLinear => 1.0 - t,
        }
    }

    /// The weight −α′(t) / (1 − α(t)) of the cross-entropy on masked slots in the continuous-time
    /// NELBO (MDLM, eq. 11). Diverges as t → 0.
    pub fn weight(&self, t: f64) -> f64 {
        match self {
            Schedule::LogLinear => 1.0 / t,
        }
    }
}
