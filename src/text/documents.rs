//! Text files into documents.

use std::io::Read;
use std::path::{Path, PathBuf};

/// The line that separates two documents.
pub const SEPARATOR: &str = "<|doc|>";

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Why a file could not be read as documents.
#[derive(Debug, thiserror::Error)]
pub enum DocumentsError {
    /// The file cannot be read or decompressed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// "read" or "decompress".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not UTF-8.
    #[error(
        "{} is not UTF-8: invalid byte at offset {offset} of its (decompressed) text; convert it to UTF-8",
        path.display()
    )]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first invalid byte in the decompressed text.
        offset: usize,
    },
    /// The file holds no text.
    #[error("{} holds no documents with text", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A document does not fit a window, and is not to be cut.
    #[error(
        "document {number} of the {text} text is {tokens} tokens long, and the context {context}: shorten it, give a larger \
         --context, or leave --refuse-long-documents out, so that it is cut into windows"
    )]
    TooLong {
        /// Its place among the documents with a visible character, from 1.
        number: usize,
        /// "training", "validation" or "evaluated".
        text: &'static str,
        /// Its length in tokens.
        tokens: usize,
        /// The length of a window in tokens.
        context: usize,
    },
}

/// The documents of one file, in order. Documents without a visible character are left out.
///
/// The file is UTF-8 text, plain or zstd (told apart by its first bytes, not by its name), with
/// documents separated by a line [`SEPARATOR`]. The line break before a separator is not part of
/// the document.
///
/// # Errors
/// When the file cannot be read or decompressed, is not UTF-8, or holds no document.
pub fn read_documents(path: &Path) -> Result<Vec<String>, DocumentsError> {
    let documents = split(&read_text(path)?);
    if documents.is_empty() {
        return Err(DocumentsError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(documents)
}

/// The text of a file: UTF-8, plain or zstd (told apart by its first bytes, not by its name).
///
/// # Errors
/// When the file cannot be read or decompressed, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, DocumentsError> {
    let failed = |action| {
        move |source| DocumentsError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let mut bytes = std::fs::read(path).map_err(failed("read"))?;
    if bytes.starts_with(&ZSTD_MAGIC) {
        let mut text = Vec::with_capacity(bytes.len() * 4);
        zstd::Decoder::new(bytes.as_slice())
            .and_then(|mut decoder| decoder.read_to_end(&mut text))
            .map_err(failed("decompress"))?;
        bytes = text;
    }
    String::from_utf8(bytes).map_err(|error| DocumentsError::NotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
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

    fn read(bytes: &[u8]) -> Result<Vec<String>, DocumentsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read_documents(file.path())
    }

    #[test]
    fn documents_split_at_separator_lines_only() {
        let text = "<|doc|>\none\n<|doc|> inside\n<|doc|>\r\n \n<|doc|>\ntwo\n\n<|doc|>\nthree";
        assert_eq!(split(text), ["one\n<|doc|> inside", "two\n", "three"]);
    }

    #[test]
    fn compressed_and_plain_files_hold_the_same_documents() {
        let text = "one\n<|doc|>\ntwo\n".as_bytes();
        let compressed = zstd::encode_all(text, 3).unwrap();
        assert_eq!(read(text).unwrap(), ["one", "two"]);
        assert_eq!(read(&compressed).unwrap(), ["one", "two"]);
        let cut_short = read(&compressed[..compressed.len() - 2]).unwrap_err();
        assert!(matches!(
            cut_short,
            DocumentsError::Io {
                action: "decompress",
                ..
            }
        ));
    }

    #[test]
    fn files_without_text_and_bytes_that_are_not_utf_8_are_refused() {
        for empty in [&b""[..], b" \n<|doc|>\n\n"] {
            assert!(matches!(
                read(empty).unwrap_err(),
                DocumentsError::Empty { .. }
            ));
        }
        assert!(matches!(
            read(b"ab\xc3\xa9\xff").unwrap_err(),
            DocumentsError::NotUtf8 { offset: 4, .. }
        ));
        let missing = read_documents(Path::new("no such file")).unwrap_err();
        assert!(matches!(missing, DocumentsError::Io { action: "read", .. }));
    }
}
