//! What can be wrong with an argument of the diffusion mathematics.

/// An argument that no formula of this module can take.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A name that is no schedule.
    #[error(
        "unknown noise schedule {given:?}; known are log-linear, cosine[:OFFSET], maskgit, \
         polynomial:POWER, geometric:MIN,MAX, linear-beta:MIN,MAX and table:ALPHA,ALPHA,…"
    )]
    UnknownSchedule {
        /// What was given.
        given: String,
    },
    /// A schedule with the wrong number of parameters, or one that is not a number.
    #[error("noise schedule {given:?}: expected {expected}")]
    ScheduleSyntax {
        /// What was given.
        given: String,
        /// The form that is expected.
        expected: &'static str,
    },
    /// A parameter outside its range.
    #[error("{name} is {value}, but must be {allowed}")]
    Parameter {
        /// The parameter, with what it belongs to.
        name: &'static str,
        /// What was given.
        value: f64,
        /// The allowed range, in words.
        allowed: &'static str,
    },
    /// A table of α with fewer than two entries (one at t = 0, one at t = 1).
    #[error("a table of α needs at least two entries, at t = 0 and at t = 1; it has {entries}")]
    ShortTable {
        /// How many entries there are.
        entries: usize,
    },
    /// T = 0.
    #[error("a discrete schedule needs at least one step, but T is 0")]
    NoSteps,
    /// β_t outside [0, 1].
    #[error("β_{t} is {value}, but a corruption probability lies in [0, 1]")]
    BetaOutOfRange {
        /// The step, counted from 1.
        t: usize,
        /// β_t.
        value: f64,
    },
    /// α outside [0, 1].
    #[error("α is {value}, but a survival probability lies in [0, 1]")]
    AlphaOutOfRange {
        /// α.
        value: f64,
    },
    /// α grows with time.
    #[error("α grows from {earlier} to {later}, but noise can only take signal away")]
    AlphaIncreases {
        /// α at the earlier time.
        earlier: f64,
        /// α at the later time.
        later: f64,
    },
    /// Continuous time outside [0, 1].
    #[error("{name} is {value}, but time lies in [0, 1]")]
    TimeOutOfRange {
        /// Which time.
        name: &'static str,
        /// What was given.
        value: f64,
    },
    /// Discrete time outside first..=T.
    #[error("step {t} is outside {first}..={last}")]
    StepOutOfRange {
        /// What was given.
        t: usize,
        /// The first allowed step.
        first: usize,
        /// The last allowed step, T.
        last: usize,
    },
    /// s > t.
    #[error("an interval runs from s to t with s ≤ t, but s = {s} and t = {t}")]
    TimesReversed {
        /// The earlier time.
        s: f64,
        /// The later time.
        t: f64,
    },
    /// Fewer states than a process needs.
    #[error("a process needs at least two states, but K is {states}")]
    TooFewStates {
        /// K.
        states: usize,
    },
    /// A state that is none of 0..K.
    #[error("{name} is state {state}, but there are {states} states, counted from 0")]
    StateOutOfRange {
        /// Which argument.
        name: &'static str,
        /// What was given.
        state: usize,
        /// K.
        states: usize,
    },
    /// Numbers that are no distribution.
    #[error("not a distribution: {reason}")]
    NotADistribution {
        /// What is wrong with them.
        reason: String,
    },
    /// Two vectors that should have the same length.
    #[error("{name} has length {given}, expected {expected}")]
    LengthMismatch {
        /// Which argument.
        name: &'static str,
        /// Its length.
        given: usize,
        /// The expected length.
        expected: usize,
    },
    /// Conditioning on an event of probability zero: x_t cannot come from x_0.
    #[error("x_t = {x_t} cannot come from x_0 = {x_0}: q(x_t | x_0) = 0 at α = {alpha}")]
    Impossible {
        /// The noisy state.
        x_t: usize,
        /// The clean state.
        x_0: usize,
        /// α at time t.
        alpha: f64,
    },
    /// Conditioning on an event of probability zero: x_t comes from no x_0 that the denoiser allows.
    #[error(
        "x_t = {x_t} comes from no x_0 to which the denoiser gives probability, at α = {alpha}"
    )]
    Unreachable {
        /// The noisy state.
        x_t: usize,
        /// α at time t.
        alpha: f64,
    },
    /// The score at a state that some x_0 rules out: its denoiser says nothing about that x_0.
    #[error(
        "the denoiser at x_t = {x_t} does not determine a score at α = {alpha}: some x_0 cannot become x_t \
         (an absorbing process has scores at masked slots only, none has them at α = 1)"
    )]
    NoScore {
        /// The noisy state.
        x_t: usize,
        /// α at time t.
        alpha: f64,
    },
    /// An Euler step that would make a probability negative.
    #[error("an Euler step of {step} is too long for this velocity: at most {largest}")]
    StepTooLong {
        /// What was given.
        step: f64,
        /// The longest step that leaves a distribution.
        largest: f64,
    },
    /// Re-masking more often than the marginals allow.
    #[error("σ is {sigma}, but at this step 0 ≤ σ ≤ min(1, (1 − α_s) / α_t) = {largest}")]
    SigmaOutOfRange {
        /// What was given.
        sigma: f64,
        /// The largest σ.
        largest: f64,
    },
    /// A formula for the absorbing process, asked of another.
    #[error("re-masking is defined for the absorbing process only, and this one is uniform")]
    NotAbsorbing,
}
