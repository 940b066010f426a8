//! The SHA-256 of a file that grows.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use ring::digest::{Context, SHA256};

/// Bytes that are read at a time.
const PIECE: usize = 1 << 16;

/// The SHA-256 of the first bytes of a file. Attempts at a download share it, so that each byte is hashed once.
pub(super) struct Sha256 {
    context: Context,
    /// How many bytes are in it.
    bytes: u64,
}

impl Sha256 {
    /// That of no bytes.
    pub fn new() -> Self {
        Self {
            context: Context::new(&SHA256),
            bytes: 0,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// Takes in the bytes of `file` up to `length` that it does not have yet.
    pub fn catch_up(&mut self, file: &mut File, length: u64) -> io::Result<()> {
        if self.bytes > length {
            *self = Self::new();
        }
        file.seek(SeekFrom::Start(self.bytes))?;
        let mut rest = file.take(length - self.bytes);
        let mut piece = vec![0; PIECE];
        loop {
            match rest.read(&mut piece)? {
                0 => return Ok(()),
                read => self.update(&piece[..read]),
            }
        }
    }

    /// In hexadecimal digits, small ones.
    pub fn hex(&self) -> String {
        let digest = self.context.clone().finish();
        let digits = digest.as_ref().iter();
        digits.map(|byte| format!("{byte:02x}")).collect()
    }
}
