//! Requests that wait for their first step, first come first served.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::SubmitError;
use super::sequence::Sequence;

/// A bounded queue. Requests whose client has gone make room for others.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Tells those who wait for a place that there is one more.
    freed: Notify,
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
            freed: Notify::new(),
            limit,
        }
    }

    /// Appends a request.
    ///
    /// # Errors
    /// If as many requests wait as may, or the queue is closed.
    pub fn push(&self, sequence: Sequence) -> Result<(), SubmitError> {
        self.append(self.room(self.limit)?, sequence);
        Ok(())
    }

    /// As [`Queue::push`], once fewer than half as many wait as may: the other half is for those who are refused
    /// rather than wait.
    ///
    /// # Errors
    /// If the queue is closed.
    pub async fn push_in_turn(&self, sequence: Sequence) -> Result<(), SubmitError> {
        loop {
            let mut freed = pin!(self.freed.notified());
            // A place that falls free after the next look is not to be missed.
            freed.as_mut().enable();
            match self.room(self.limit.div_ceil(2)) {
                Ok(state) => {
                    self.append(state, sequence);
                    return Ok(());
                }
                Err(SubmitError::QueueFull) => {}
                Err(error) => return Err(error),
            }
            freed.await;
        }
    }

    /// Whether a request would be taken.
    ///
    /// # Errors
    /// Those of [`Queue::push`].
    pub fn check_room(&self) -> Result<(), SubmitError> {
        self.room(self.limit).map(drop)
    }

    /// The queue, if fewer than `limit` wait.
    fn room(&self, limit: usize) -> Result<MutexGuard<'_, State>, SubmitError> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(SubmitError::Stopped);
        }
        if state.waiting.len() >= limit {
            // A step may be long, and those that went since the last one are not worth a refusal.
            self.forget_cancelled(&mut state);
        }
        match state.waiting.len() < limit {
            true => Ok(state),
            false => Err(SubmitError::QueueFull),
        }
    }

    fn append(&self, mut state: MutexGuard<'_, State>, sequence: Sequence) {
        state.waiting.push_back(sequence);
        self.changed.notify_one();
    }

    /// Forgets the requests whose client has gone.
    pub fn drop_cancelled(&self) {
        self.forget_cancelled(&mut self.lock());
    }

    fn forget_cancelled(&self, state: &mut State) {
        let before = state.waiting.len();
        state.waiting.retain(|waiting| !waiting.is_cancelled());
        for _ in state.waiting.len()..before {
            self.freed.notify_one();
        }
    }

    /// Takes the first request whose client is still there, if it `fits`.
    pub fn pop_if(&self, fits: impl FnOnce(&Sequence) -> bool) -> Option<Sequence> {
        let mut state = self.lock();
        while state.waiting.front()?.is_cancelled() {
            state.waiting.pop_front();
            self.freed.notify_one();
        }
        if !fits(state.waiting.front()?) {
            return None;
        }
        self.freed.notify_one();
        state.waiting.pop_front()
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
        self.freed.notify_waiters();
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
