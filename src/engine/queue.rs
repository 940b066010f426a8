//! Requests that wait for their first step, first come first served.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::SubmitError;
use super::sequence::Sequence;

/// A bounded queue. Requests whose client has gone make room for others.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Sequence>,
    is_closed: bool,
}

impl Queue {
    /// An empty queue of at most `limit` requests.
    pub fn new(limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            limit,
        }
    }

    /// Appends a request.
    ///
    /// # Errors
    /// If as many requests wait as may, or the queue is closed.
    pub fn push(&self, sequence: Sequence) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(SubmitError::Stopped);
        }
        if state.waiting.len() >= self.limit {
            // A step may be long, and those that went since the last one are not worth a refusal.
            state.waiting.retain(|waiting| !waiting.is_cancelled());
        }
        if state.waiting.len() >= self.limit {
            return Err(SubmitError::QueueFull);
        }
        state.waiting.push_back(sequence);
        self.changed.notify_one();
        Ok(())
    }

    /// Forgets the requests whose client has gone.
    pub fn drop_cancelled(&self) {
        let mut state = self.lock();
        state.waiting.retain(|waiting| !waiting.is_cancelled());
    }

    /// Takes the first request whose client is still there, if it `fits`.
    pub fn pop_if(&self, fits: impl FnOnce(&Sequence) -> bool) -> Option<Sequence> {
        let mut state = self.lock();
        while state.waiting.front()?.is_cancelled() {
            state.waiting.pop_front();
        }
        if fits(state.waiting.front()?) {
            state.waiting.pop_front()
        } else {
            None
        }
    }

    /// Waits until there is a request; false if there will be none any more.
    pub fn wait(&self) -> bool {
        let state = self.lock();
        let state = self
            .changed
            .wait_while(state, |state| state.waiting.is_empty() && !state.is_closed)
            .unwrap_or_else(PoisonError::into_inner);
        !state.waiting.is_empty()
    }

    /// Takes no more requests; those that wait are still served.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Number of requests that wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// The state is whole between any two statements, so that a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
