//! Work that takes a while, beside the threads that answer.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

use super::deadline::{Deadline, within};
use super::error::ApiError;
use super::languages::MOST_WAITING;

/// Threads for work that takes a while, of which so many run at a time; what comes meanwhile waits in order.
#[derive(Clone)]
pub(super) struct Background(Arc<Semaphore>);

impl Default for Background {
    /// One thread for each processor, beside those that wait for a language. Long texts, which wait for each other,
    /// can take them all.
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        Self::of(MOST_WAITING + processors)
    }
}

impl Background {
    fn of(threads: usize) -> Self {
        Self(Arc::new(Semaphore::new(threads)))
    }

    /// Does `work` in a thread where others do not wait for it. What waits for its turn is forgotten with the
    /// returned future; what has begun is done to its end and holds its place until then, whoever still wants it.
    ///
    /// # Errors
    /// Those of the work, or that `deadline` is over before.
    pub async fn run<T: Send + 'static>(
        &self,
        deadline: Deadline,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        within(deadline, async {
            let place = self.0.clone().acquire_owned().await;
            let place = place.map_err(|error| ApiError::internal(error.to_string()))?;
            let done = tokio::task::spawn_blocking(move || {
                let _kept = place;
                work()
            });
            done.await
                .unwrap_or_else(|error| match error.try_into_panic() {
                    // What a panic says is for the log; whoever catches it here does not tell the client.
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => Err(ApiError::internal(format!("work was given up: {error}"))),
                })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_waits_is_forgotten_with_its_caller_and_what_has_begun_keeps_its_place() {
        let background = Background::of(1);
        let none = Deadline::after(None);
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (end, ends) = mpsc::channel::<()>();
        let first = background.run(none, move || {
            begun.send(()).unwrap();
            ends.recv().unwrap();
            Ok(())
        });
        // The first caller goes after its work has begun, the second while it waits.
        tokio::select! {
            _ = first => panic!("it has not ended"),
            begun = has_begun => begun.unwrap(),
        }
        let short = Deadline::after(Some(Duration::from_millis(1)));
        let forgotten = background.run::<()>(short, || panic!("nobody wants this any more"));
        assert_eq!(forgotten.await.unwrap_err().code(), "deadline_exceeded");
        end.send(()).unwrap();
        assert_eq!(background.run(none, || Ok(3)).await.unwrap(), 3);
    }
}
