//! Places in a ring of memory whose bytes something else reads later than they are written.

use std::ops::Range;

use super::packing::ALIGNMENT;

/// Parts of memory, end to end, that are filled one after the other and again from the first.
#[derive(Debug)]
pub struct Ring {
    parts: usize,
    part_bytes: usize,
    part: usize,
    filled: usize,
}

/// What reads the bytes of a [`Ring`], each place once, after it was asked to.
pub trait Reader {
    /// Why it fails.
    type Error;

    /// Remembers all that was asked of `part` so far.
    ///
    /// # Errors
    /// If it cannot; nothing is said of the part then.
    fn mark(&mut self, part: usize) -> Result<(), Self::Error>;

    /// Waits until all that was remembered of `part` is read; of a part that was never marked there is nothing.
    ///
    /// # Errors
    /// If it is not known to be read.
    fn wait(&mut self, part: usize) -> Result<(), Self::Error>;
}

impl Ring {
    /// Of `parts` of `part_bytes` each, a multiple of [`ALIGNMENT`].
    ///
    /// # Panics
    /// If there is no part, or one would not end where the next may begin.
    pub fn new(parts: usize, part_bytes: usize) -> Self {
        assert!(parts > 0 && part_bytes.is_multiple_of(ALIGNMENT));
        Self {
            parts,
            part_bytes,
            part: 0,
            filled: 0,
        }
    }

    /// The size of all parts.
    pub fn bytes(&self) -> usize {
        self.parts * self.part_bytes
    }

    /// Where so many bytes may be written, which `reader` is asked to read afterwards or not at all; `None` if a part
    /// has no room for them. The place is the caller's whatever becomes of it.
    ///
    /// A part is marked when it is left and waited for when it is entered again, so nothing that `reader` was asked for
    /// is overwritten. If either fails the part is not left: what was asked meanwhile is in the next mark.
    ///
    /// # Errors
    /// The reader's.
    pub fn place<R: Reader>(
        &mut self,
        bytes: usize,
        reader: &mut R,
    ) -> Result<Option<Range<usize>>, R::Error> {
        if bytes > self.part_bytes {
            return Ok(None);
        }
        if bytes > self.part_bytes - self.filled {
            let next = (self.part + 1) % self.parts;
            reader.mark(self.part)?;
            reader.wait(next)?;
            (self.part, self.filled) = (next, 0);
        }
        let first = self.part * self.part_bytes + self.filled;
        self.filled = (self.filled + bytes).next_multiple_of(ALIGNMENT);
        Ok(Some(first..first + bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART_BYTES: usize = 64;

    /// Reads nothing before it is waited for, and fails now and then.
    #[derive(Default)]
    struct Late {
        /// What was asked and is not known to be read: its place, and whether it is remembered.
        asked: Vec<(Range<usize>, bool)>,
        waits: usize,
        calls: usize,
        fails_every: Option<usize>,
    }

    impl Late {
        fn call(&mut self) -> Result<(), ()> {
            self.calls += 1;
            match self.fails_every {
                Some(every) if self.calls.is_multiple_of(every) => Err(()),
                _ => Ok(()),
            }
        }
    }

    fn part_of(place: &Range<usize>) -> usize {
        place.start / PART_BYTES
    }

    impl Reader for Late {
        type Error = ();

        fn mark(&mut self, part: usize) -> Result<(), ()> {
            self.call()?;
            let of_part = self.asked.iter_mut().filter(|(at, _)| part_of(at) == part);
            of_part.for_each(|(_, remembered)| *remembered = true);
            Ok(())
        }

        fn wait(&mut self, part: usize) -> Result<(), ()> {
            self.call()?;
            self.waits += 1;
            self.asked
                .retain(|(at, remembered)| !(part_of(at) == part && *remembered));
            Ok(())
        }
    }

    /// Lengths without a pattern, up to a part's.
    fn lengths() -> impl Iterator<Item = usize> {
        (0..500).map(|i: usize| i.wrapping_mul(2_654_435_761) / 7 % (PART_BYTES + 1))
    }

    #[test]
    fn no_place_is_given_again_before_it_is_known_to_be_read_whatever_fails() {
        for parts in [1, 2, 3] {
            for fails_every in [None, Some(3), Some(4), Some(5)] {
                let mut ring = Ring::new(parts, PART_BYTES);
                let mut reader = Late {
                    fails_every,
                    ..Late::default()
                };
                let mut given = 0;
                for bytes in lengths() {
                    let Ok(place) = ring.place(bytes, &mut reader) else {
                        continue;
                    };
                    let place = place.expect("a part has room");
                    assert_eq!(place.len(), bytes);
                    assert!(place.start.is_multiple_of(ALIGNMENT));
                    assert!(place.end <= (part_of(&place) + 1) * PART_BYTES || bytes == 0);
                    assert!(place.end <= ring.bytes());
                    for (asked, _) in &reader.asked {
                        assert!(asked.end <= place.start || place.end <= asked.start);
                    }
                    given += 1;
                    if bytes > 0 {
                        reader.asked.push((place, false));
                    }
                }
                assert!(given > 100);
            }
        }
    }

    #[test]
    fn nothing_is_waited_for_before_a_part_is_full() {
        let mut ring = Ring::new(3, PART_BYTES);
        let mut reader = Late::default();
        for i in 0..4 {
            let place = ring.place(ALIGNMENT, &mut reader);
            assert_eq!(place, Ok(Some(i * ALIGNMENT..(i + 1) * ALIGNMENT)));
        }
        assert_eq!(reader.calls, 0);
        assert_eq!(
            ring.place(1, &mut reader),
            Ok(Some(PART_BYTES..PART_BYTES + 1))
        );
        assert_eq!(reader.waits, 1);
    }

    #[test]
    fn what_no_part_has_room_for_is_given_no_place_and_turns_nothing() {
        let mut ring = Ring::new(2, PART_BYTES);
        let mut reader = Late::default();
        assert_eq!(ring.place(PART_BYTES + 1, &mut reader), Ok(None));
        assert_eq!(ring.place(PART_BYTES, &mut reader), Ok(Some(0..PART_BYTES)));
        assert_eq!(reader.calls, 0);
    }
}
