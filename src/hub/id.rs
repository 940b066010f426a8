//! Names of repositories.

use std::fmt;

/// The name of a repository: `owner/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryId(String);

impl RepositoryId {
    /// Longest owner and longest name, in bytes.
    const MAX_LENGTH: usize = 96;

    /// Reads `owner/name`; `None` if it is neither that nor could be.
    pub fn parse(text: &str) -> Option<Self> {
        let (owner, name) = text.split_once('/')?;
        let is_plain = |part: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            (1..=Self::MAX_LENGTH).contains(&part.len())
                && !part.starts_with(['.', '-'])
                && part.bytes().all(allowed)
        };
        (is_plain(owner) && is_plain(name)).then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_and_a_name_are_a_repository_and_paths_are_none() {
        for id in ["GSAI-ML/LLaDA-8B-Instruct", "a/b", "x_1/y.2"] {
            assert_eq!(RepositoryId::parse(id).unwrap().to_string(), id);
        }
        for path in [
            "model", "./a/b", "../a", "/a/b", "a/b/c", "a/", "/b", "a/..", "a b/c", "~/m", "",
        ] {
            assert_eq!(RepositoryId::parse(path), None, "{path}");
        }
    }
}
