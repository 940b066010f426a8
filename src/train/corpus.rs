//! Text files into documents.

use std::io::Read;
use std::path::Path;

use super::error::TrainError;

/// The line that separates two documents.
pub const SEPARATOR: &str = "<|doc|>";

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The documents of one file, in order. Documents without a visible character are left out.
///
/// The file is UTF-8 text, plain or zstd (told apart by its first bytes, not by its name), with
/// documents separated by a line [`SEPARATOR`]. The line break before a separator is not part of
/// the document.
///
/// # Errors
/// When the file cannot be read or decompressed, is not UTF-8, or holds no document.
pub fn read_documents(path: &Path) -> Result<Vec<String>, TrainError> {
    let mut bytes = std::fs::read(path).map_err(TrainError::io("read", path))?;
    if bytes.starts_with(&ZSTD_MAGIC) {
        let mut text = Vec::with_capacity(bytes.len() * 4);
        zstd::Decoder::new(bytes.as_slice())
            .and_then(|mut decoder| decoder.read_to_end(&mut text))
            .map_err(TrainError::io("decompress", path))?;
        bytes = text;
    }
    let text = String::from_utf8(bytes).map_err(|error| TrainError::NotUtf8 {
        path: path.to_path_buf(),
        offset: error.utf8_error().valid_up_to(),
    })?;
    let documents = split(&text);
    if documents.is_empty() {
        return Err(TrainError::EmptyCorpus {
            path: path.to_path_buf(),
        });
    }
    Ok(documents)
}

fn split(text: &str) -> Vec<String> {
    let mut documents = Vec::new();
    let mut push = |document: &str| {
        let document = document.strip_suffix('\n').unwrap_or(document);
        let document = document.strip_suffix('\r').unwrap_or(document);
        if !document.trim().is_empty() {
            documents.push(document.to_owned());
        }
    };
    let (mut start, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        if line.trim_end_matches(['\n', '\r']) == SEPARATOR {
            push(&text[start..at]);
            start = at + line.len();
        }
        at += line.len();
    }
    push(&text[start..]);
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_split_at_separator_lines_only() {
        let text = "<|doc|>\none\n<|doc|> inside\n<|doc|>\r\n \n<|doc|>\ntwo\n\n<|doc|>\nthree";
        assert_eq!(split(text), ["one\n<|doc|> inside", "two\n", "three"]);
    }
}
