//! Fields that are one thing or a list of them. The visitors keep a list's index in an error's path,
//! which an untagged enum would lose.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use utoipa::openapi::schema::OneOfBuilder;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::number::Whole;

/// `prompt`: a text, or a list.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// One text.
    Text(String),
    /// Texts, token ids, or lists of token ids.
    List(Vec<PromptItem>),
}

/// An entry of a list of prompts.
#[derive(Debug, Clone, PartialEq)]
pub enum PromptItem {
    /// A prompt as text.
    Text(String),
    /// A token of the one prompt.
    Token(u64),
    /// A prompt as token ids.
    Tokens(Vec<u64>),
}

/// A text, or a list of texts: `stop`, and what is to be scored.
#[derive(Debug, Clone, PartialEq)]
pub enum Texts {
    /// One text.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// The schema of a value that is one of several kinds.
pub(super) fn one_of(
    description: &str,
    kinds: impl IntoIterator<Item = RefOr<Schema>>,
) -> RefOr<Schema> {
    let one_of = OneOfBuilder::new().description(Some(description));
    kinds.into_iter().fold(one_of, OneOfBuilder::item).into()
}

impl PartialSchema for Prompt {
    fn schema() -> RefOr<Schema> {
        one_of(
            "A text, or a list of texts, of token ids or of lists of token ids.",
            [
                String::schema(),
                Vec::<String>::schema(),
                Vec::<u32>::schema(),
                Vec::<Vec<u32>>::schema(),
            ],
        )
    }
}

impl ToSchema for Prompt {}

impl PartialSchema for Texts {
    fn schema() -> RefOr<Schema> {
        one_of(
            "A text, or a list of texts.",
            [String::schema(), Vec::<String>::schema()],
        )
    }
}

impl ToSchema for Texts {}

fn list<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut items: A) -> Result<Vec<T>, A::Error> {
    let mut list = Vec::new();
    while let Some(item) = items.next_element()? {
        list.push(item);
    }
    Ok(list)
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptVisitor;
        impl<'de> Visitor<'de> for PromptVisitor {
            type Value = Prompt;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, or a list of strings, of token ids or of lists of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Prompt, A::Error> {
                list(items).map(Prompt::List)
            }
        }
        deserializer.deserialize_any(PromptVisitor)
    }
}

impl<'de> Deserialize<'de> for PromptItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = PromptItem;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<PromptItem, E> {
                Ok(PromptItem::Text(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, token: u64) -> Result<PromptItem, E> {
                Ok(PromptItem::Token(token))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<PromptItem, A::Error> {
                let tokens: Vec<Whole> = list(items)?;
                Ok(PromptItem::Tokens(
                    tokens.into_iter().map(|token| token.0).collect(),
                ))
            }
        }
        deserializer.deserialize_any(ItemVisitor)
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Texts, A::Error> {
                list(items).map(Texts::Many)
            }
        }
        deserializer.deserialize_any(TextsVisitor)
    }
}
