//! The checkpoint inside the binary.

use crate::models::{Checkpoint, ModelError};

/// The name under which the embedded model is served.
pub const NAME: &str = "unmask-small";

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/models/unmask-small/",
            $name
        ))
    };
}

/// Opens the embedded model, which was trained by `unmask train` (see its model card).
///
/// # Errors
/// Never for a released binary: its tests load the model.
pub fn checkpoint() -> Result<Checkpoint, ModelError> {
    Checkpoint::from_bytes(
        NAME,
        file!("config.json"),
        file!("generation_config.json"),
        file!("tokenizer.json"),
        file!("model.safetensors"),
    )
}
