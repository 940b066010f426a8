//! What becomes of a server whose device has no memory left: allocations that cannot be had, in the place of a card that
//! is filled up, which others may compute on.

use candle_core::{DType, Device, Tensor};

use crate::canvas::{Canvas, CanvasError, TokenId};
use crate::decode::DecodePlan;
use crate::engine::{
    Engine, EngineConfig, Event, Generation, GenerationError, StartError, SubmitError,
};
use crate::models::{Denoiser, KvPool, ModelError, ModelSpec, RaggedBatch, embedded};

/// Bytes that no card has: 8 TiB.
const IMPOSSIBLE: usize = 1 << 43;

/// Sequences whose keys and values take more than that, of each kind in each layer.
const ASKING: usize = 1 << 24;

/// Rows of a batch above which the model asks for memory that is not there.
const ROOM: usize = 40;

/// Why running out of memory is not survived.
#[derive(Debug, thiserror::Error)]
pub enum MemoryFailure {
    /// The model cannot be loaded or run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A canvas is none.
    #[error(transparent)]
    Canvas(#[from] CanvasError),
    /// No engine was started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The engine refused a canvas.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// Something else came of it.
    #[error("{0}")]
    Differs(String),
}

/// What a device says when it lacks memory.
type Lack = Box<dyn Fn() -> candle_core::Error + Send>;

/// Checks on `device` that memory which cannot be had is told from other failures; that the request which needs it fails
/// for that, while the one that was there before it, and one after it, are answered; and that an engine whose keys and
/// values have no room is not started.
///
/// # Errors
/// If something else comes of it. On a CPU, where the system promises memory that it does not have and ends
/// processes, always: the check is not for it.
pub fn is_survived(device: &Device) -> Result<String, MemoryFailure> {
    if device.is_cpu() {
        let reason = "not for a CPU, on which nothing is asked for that is not there";
        return Err(MemoryFailure::Differs(reason.into()));
    }
    let asked = device.clone();
    let lack = move || match Tensor::zeros(IMPOSSIBLE, DType::U8, &asked) {
        Err(error) => error,
        Ok(_) => candle_core::Error::Msg(format!("{IMPOSSIBLE} bytes were there")),
    };
    let seen = is_survived_where(
        embedded::checkpoint()?.load(DType::F32, device)?,
        Box::new(lack),
    )?;
    let config = EngineConfig {
        kv_memory: usize::MAX,
        max_sequences: ASKING,
        ..EngineConfig::default()
    };
    let model = embedded::checkpoint()?.load(DType::F32, device)?;
    match Engine::start(model, config) {
        Err(StartError::KvMemory { bytes, .. }) => Ok(format!(
            "{seen}; {bytes} bytes of keys and values are refused"
        )),
        Err(error) => Err(error.into()),
        Ok(_) => Err(MemoryFailure::Differs(
            "keys and values have room that no card has".into(),
        )),
    }
}

/// As [`is_survived`], with a model that lacks memory as `lack` has it.
fn is_survived_where(model: Box<dyn Denoiser>, lack: Lack) -> Result<String, MemoryFailure> {
    let error = ModelError::from(lack());
    if !error.is_out_of_memory() {
        return Err(MemoryFailure::Differs(format!(
            "a lack of memory is taken for another failure: {error}"
        )));
    }
    // Its longer canvas would find out before any request that memory lacks.
    let config = EngineConfig {
        warms_up: Some(false),
        ..EngineConfig::default()
    };
    let engine = Engine::start(Box::new(Demanding { model, lack }), config)?;
    let plan = &engine.spec().default_plan;
    let mut small = submit(&engine, 12, plan)?;
    let mut large = submit(&engine, ROOM, plan)?;
    match end(&mut large) {
        Err(GenerationError::OutOfMemory) => {}
        other => {
            return Err(MemoryFailure::Differs(format!(
                "a request without memory for it: {other:?}"
            )));
        }
    }
    let mut later = submit(&engine, 12, plan)?;
    for (when, generation) in [("before", &mut small), ("after", &mut later)] {
        end(generation).map_err(|error| {
            MemoryFailure::Differs(format!(
                "the request {when} the one without memory: {error}"
            ))
        })?;
    }
    match engine.is_running() && engine.status().failing == 0 {
        true => Ok(format!("\"{}\"", GenerationError::OutOfMemory)),
        false => Err(MemoryFailure::Differs("the engine does not go on".into())),
    }
}

fn submit(engine: &Engine, gap: usize, plan: &DecodePlan) -> Result<Generation, MemoryFailure> {
    let prompt: [TokenId; 4] = [10, 20, 30, 40];
    let canvas = Canvas::builder(engine.blank()).fixed(&prompt).gap(gap);
    Ok(engine.submit(canvas.build()?, plan)?)
}

fn end(generation: &mut Generation) -> Result<(), GenerationError> {
    loop {
        match generation.next_blocking() {
            Some(Event::Step(_)) => {}
            Some(Event::Finished(..)) => return Ok(()),
            Some(Event::Failed(error)) => return Err(error),
            None => return Err(GenerationError::Stopped),
        }
    }
}

/// A model that needs memory which is not there for a batch of more than [`ROOM`] rows.
struct Demanding {
    model: Box<dyn Denoiser>,
    lack: Lack,
}

impl Denoiser for Demanding {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn dtype(&self) -> DType {
        self.model.dtype()
    }

    fn hidden(&self, batch: &RaggedBatch, pool: Option<&KvPool>) -> Result<Tensor, ModelError> {
        match batch.rows() > ROOM {
            true => Err((self.lack)().into()),
            false => self.model.hidden(batch, pool),
        }
    }

    fn head(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        self.model.head(hidden)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survived(text: &'static str) -> Result<String, MemoryFailure> {
        let model = embedded::checkpoint()?.load(DType::F32, &Device::Cpu)?;
        let lack = || candle_core::Error::Cuda(text.into());
        is_survived_where(model, Box::new(lack))
    }

    #[test]
    fn a_request_without_memory_fails_for_that_and_the_others_are_answered() {
        let seen = survived("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")").unwrap();
        assert!(seen.contains("no memory left"), "{seen}");
    }

    #[test]
    fn a_device_that_fails_otherwise_is_not_taken_for_a_full_one() {
        let error = survived("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS)").unwrap_err();
        assert!(error.to_string().contains("ILLEGAL_ADDRESS"), "{error}");
    }

    #[test]
    fn the_check_is_not_for_a_cpu() {
        let error = is_survived(&Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("not for a CPU"), "{error}");
    }
}
