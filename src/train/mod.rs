//! Training of masked diffusion language models in the LLaDA architecture.
//!
//! | module | what it is for |
//! |---|---|
//! | [`config`] | every setting of a run, checked before anything is read |
//! | [`tokenizer`] | byte-level BPE with the three special tokens |
//! | [`data`] | the texts of a run, read and encoded, and the batches made from them |
//! | [`pairs`] | prompts with their answers, for supervised fine-tuning |
//! | [`source`] | where windows are taken from |
//! | [`batch`] | windows of tokens, and the same noised |
//! | [`draws`] | counter-based random streams, diffusion times |
//! | [`initial`] | the checkpoint that a run starts from, when it is not random weights |
//! | [`layout`] | the network's parameters in one flat buffer |
//! | [`network`] | the loss and its gradient: the trait, and the reference, which candle derives |
//! | [`cpu`] | the same function written by hand for the CPU |
//! | [`device`] | the same in tensor operations for a device, and the optimisers there |
//! | [`learner`] | what is trained, and a step of it: in the host's memory, or on a device |
//! | [`optimizer`] | AdamW and Muon, clipping, learning-rate schedule, exponential moving average |
//! | [`checkpoint`] | the Hugging Face directory and the resumable state, written atomically |
//! | [`throughput`] | operations of a step, and how many the machine does a second |
//! | [`trainer`] | one training step, one validation |
//! | [`run`](mod@run) | the loop of `unmask train`: logging, validation, checkpoints |
//! | [`log`] | `log.jsonl`: a line a step and a validation, read again when a run is resumed |
//! | [`plot`] | `loss.svg`: the losses of a log, drawn |
//! | [`error`] | what can go wrong, said so that a person knows what to do |
//!
//! Two processes noise the text: the absorbing one, which masks tokens, and the uniform one, which
//! replaces them by random ones. The network is the same and is not told the noise level: a masked slot
//! says nothing about it, and how much of a window of random tokens is noise can be seen from the others.
//!
//! The default objective is the masked-diffusion NELBO in continuous time (Sahoo et al., arXiv:2406.07524,
//! eq. 11; the same as LLaDA's, arXiv:2502.09992, eq. 3): with t ~ U(0, 1) and each token masked
//! with probability 1 − α(t), the cross-entropy on masked slots times −α′(t) / (1 − α(t)), averaged
//! over all tokens. Its unit is nats per token. For the uniform process it is the NELBO of UDLM
//! (arXiv:2412.10193), which every slot has a part in.

pub mod batch;
mod beginnings;
pub mod checkpoint;
pub mod config;
pub mod cpu;
pub mod data;
pub mod device;
pub mod draws;
pub mod error;
pub mod initial;
pub mod layout;
pub mod learner;
pub mod log;
pub mod network;
pub mod optimizer;
pub mod pairs;
pub mod plot;
pub mod run;
#[cfg(test)]
mod samples;
pub mod source;
pub mod throughput;
pub mod tokenizer;
pub mod trainer;

pub use config::{
    ModelDtype, Objective, OptimizerKind, Packing, Precision, TimeSampling, TrainConfig,
    TrainDevice, WindowStart,
};
pub use error::TrainError;
pub use initial::Initial;
pub use run::run;
pub use trainer::{StepReport, Trainer, Validation};
