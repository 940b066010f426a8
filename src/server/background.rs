//! Work that takes a while, beside the threads that answer.

use std::sync::Arc;
use std::thread::available_parallelism;

use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use super::deadline::{Deadline, within};
use super::error::ApiError;
use super::languages::MOST_WAITING;

/// Items that [`Background::stream`] makes at a time.
const AT_ONCE: usize = 8;

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

    /// What `items` yields, made a few at a time as it is taken, in a thread where others do not wait for it. After
    /// an error, also that `deadline` is over, nothing follows.
    pub fn stream<T: Send + 'static>(
        &self,
        deadline: Deadline,
        items: Box<dyn Iterator<Item = Result<T, ApiError>> + Send>,
    ) -> impl Stream<Item = Result<T, ApiError>> + Send + use<T> {
        let background = self.clone();
        let batches = stream::try_unfold(items, move |mut items| {
            let (background, deadline) = (background.clone(), deadline.clone());
            async move {
                let work = move || {
                    let batch: Result<Vec<T>, _> = items.by_ref().take(AT_ONCE).collect();
                    Ok((batch?, items))
                };
                let (batch, items) = background.run(deadline, work).await?;
                Ok::<_, ApiError>((!batch.is_empty()).then_some((batch, items)))
            }
        });
        batches
            .map_ok(|batch| stream::iter(batch).map(Ok))
            .try_flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_waits_is_forgotten_with_its_caller_and_what_has_begun_keeps_its_place() {
        let background = Background::of(1);
        let none = Deadline::after(None);
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (end, ends) = mpsc::channel::<()>();
        let first = background.run(none.clone(), move || {
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

    #[tokio::test]
    async fn what_is_streamed_is_made_beside_its_reader_and_not_long_before_it_is_read() {
        const ITEMS: usize = 100;
        let made = Arc::new(AtomicUsize::new(0));
        let (of_items, reader) = (made.clone(), std::thread::current().id());
        let items = (0..ITEMS).map(move |item| {
            assert_ne!(std::thread::current().id(), reader);
            of_items.fetch_add(1, Ordering::Relaxed);
            Ok(item)
        });
        let stream = Background::of(1).stream(Deadline::after(None), Box::new(items));
        let mut stream = std::pin::pin!(stream.enumerate());
        let mut read = 0;
        while let Some((index, item)) = stream.next().await {
            assert_eq!(item.unwrap(), index);
            read += 1;
            assert!(made.load(Ordering::Relaxed) <= read + AT_ONCE);
        }
        assert_eq!(read, ITEMS);
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_first_error() {
        let fault = || Err(ApiError::internal("item 10".into()));
        let items = (0..20).map(move |item| if item == 10 { fault() } else { Ok(item) });
        let stream = Background::of(1).stream(Deadline::after(None), Box::new(items));
        let read: Vec<_> = stream.collect().await;
        assert_eq!(
            read.last().unwrap().as_ref().unwrap_err().code(),
            "internal_error"
        );
        assert!(read[..read.len() - 1].iter().all(Result::is_ok));
        assert!(read.len() <= 11);
    }
}
