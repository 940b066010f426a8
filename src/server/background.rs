//! Work that takes a while, beside the threads that answer.

use super::error::ApiError;

/// Does `work` in a thread where others do not wait for it.
///
/// # Errors
/// Those of the work.
pub(super) async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| match error.try_into_panic() {
        // What a panic says is for the log; whoever catches it here does not tell the client.
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Err(ApiError::internal(format!("work was given up: {error}"))),
    })
}
