//! Chat templates: messages as the text that an instruction model was trained on.
//!
//! A template is Jinja, as `apply_chat_template` of Hugging Face's transformers reads it: blocks are
//! trimmed, loops have `break` and `continue`, values have Python's methods, and `raise_exception`,
//! `strftime_now` (in UTC) and `tojson` are there. It comes with a checkpoint and is not trusted: it
//! reads nothing but the messages, and pays for its instructions and for the bytes that it makes out of a budget.
//!
//! Lists escape that budget. The template engine makes a multiple of one and the sum of two for nothing, and what it
//! does of itself with their items is not always paid for: more than 32 sums one on top of the other become a list in
//! memory, and lists within lists are compared. So a template that doubles a list in a loop can take all memory; nobody
//! should serve a checkpoint whose author might want that.

mod files;
mod methods;
mod strftime;
mod tojson;

use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, Value, escape_formatter,
};
use serde_json::Map;

pub use files::ChatFiles;
use files::SpecialTokens;
use methods::paid_method;
use strftime::strftime;
use tojson::tojson;

/// The template's name in error messages.
const NAME: &str = "chat_template";

/// What one rendering may cost: about one an instruction and one for 64 bytes. With the
/// templates of released models it is enough for a megabyte of messages, be it one or thousands.
const FUEL: u64 = 4_000_000;

/// Stands at the end of a message that is to be continued while it is rendered, to find it again.
const CONTINUE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Variables that every template has; a request cannot give others by these names.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// A message of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant`; others as the template knows them.
    pub role: String,
    /// What is said.
    pub content: String,
    /// The speaker's name, which few templates show.
    pub name: Option<String>,
}

/// How the text of a chat ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatEnding {
    /// After the last message.
    Closed,
    /// With the beginning of an answer (transformers' `add_generation_prompt`).
    Answer,
    /// Within the last message, which is to be continued (`continue_final_message`).
    Continued,
}

/// Why a chat has no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChatTemplateError {
    /// A file of the checkpoint does not hold what it should.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The template is not Jinja as far as it is known here.
    #[error("the model's chat template cannot be read: {0}")]
    Syntax(String),
    /// The template refuses the messages.
    #[error("the model's chat template refuses the messages: {0}")]
    Refused(String),
    /// The template takes more work than it may.
    #[error("the model's chat template takes too much work on these messages")]
    TooCostly,
    /// The template fails.
    #[error("the model's chat template fails: {0}")]
    Failed(String),
    /// The last message cannot be continued.
    #[error(
        "the last message cannot be continued: the model's chat template does not end with its content"
    )]
    NotContinuable,
    /// A variable that is not the caller's to give.
    #[error(
        "the variable {name:?} of the chat template cannot be given; it is made from the request"
    )]
    Reserved {
        /// The variable.
        name: String,
    },
}

/// A message of the template's own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: SpecialTokens,
}

impl ChatTemplate {
    /// The template in a checkpoint's files, if they hold one.
    ///
    /// # Errors
    /// If a file does not hold what it should, or the template cannot be read.
    pub fn from_files(files: &ChatFiles) -> Result<Option<Self>, ChatTemplateError> {
        let Some((source, special_tokens)) = files.source()? else {
            return Ok(None);
        };
        let mut environment = environment();
        environment
            .add_template_owned(NAME, without_generation_marks(&source).into_owned())
            .map_err(|error| ChatTemplateError::Syntax(error.to_string()))?;
        Ok(Some(Self {
            environment,
            special_tokens,
        }))
    }

    /// The text of a chat. `variables` are the template's own, such as `enable_thinking`.
    ///
    /// # Errors
    /// If the template refuses the messages or fails, or the ending cannot be had.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        ending: ChatEnding,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<String, ChatTemplateError> {
        let reserved = |name: &&String| {
            RESERVED.contains(&name.as_str())
                || self.special_tokens.iter().any(|(token, _)| token == name)
        };
        if let Some(name) = variables.keys().find(reserved) {
            return Err(ChatTemplateError::Reserved { name: name.clone() });
        }
        let end = messages.len().saturating_sub(1);
        let values = messages.iter().enumerate().map(|(at, given)| {
            let is_continued = ending == ChatEnding::Continued && at == end;
            message(given, if is_continued { CONTINUE } else { "" })
        });
        let values: Vec<Value> = values.collect();
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", values.into()),
            // transformers passes these, and templates tell none from undefined.
            ("tools", ().into()),
            ("documents", ().into()),
            (
                "add_generation_prompt",
                (ending == ChatEnding::Answer).into(),
            ),
        ];
        let tokens = self.special_tokens.iter();
        context.extend(tokens.map(|(name, token)| (*name, Value::from(token))));
        let variables = variables.iter();
        context.extend(variables.map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        let text = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from_pairs(context)))
            .map_err(|error| failure(&error))?;
        match (ending, messages.last()) {
            (ChatEnding::Continued, Some(last)) => continued(text, &last.content),
            _ => Ok(text),
        }
    }
}

/// A message with `mark` at the end of its content.
fn message(message: &ChatMessage, mark: &str) -> Value {
    let content = format!("{}{mark}", message.content);
    let mut fields = vec![("role", message.role.clone()), ("content", content)];
    fields.extend(message.name.clone().map(|name| ("name", name)));
    Value::from_pairs(fields)
}

/// As `_compile_jinja_template` in transformers' `utils/chat_template_utils.py` sets Jinja up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            // The delimiters are Jinja's own.
            .unwrap_or_default(),
    );
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(false);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(paid_method);
    environment.set_formatter(python_formatter);
    environment.add_filter("tojson", tojson);
    environment.add_function(
        "raise_exception",
        |reason: String| -> Result<Value, Error> {
            let error = Error::new(ErrorKind::InvalidOperation, reason.clone());
            Err(error.with_source(Raised(reason)))
        },
    );
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |elapsed| elapsed.as_secs());
        strftime(&format, now).map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
    });
    environment
}

/// Pays for so many bytes before they are written, as the template's own output is paid for.
fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(1 + bytes as u64 / 64)
}

/// Writes the values that Python spells otherwise as it does.
fn python_formatter(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        _ => escape_formatter(out, state, value),
    }
}

fn failure(error: &Error) -> ChatTemplateError {
    let mut source = Some(error as &(dyn std::error::Error + 'static));
    while let Some(cause) = source {
        if let Some(Raised(reason)) = cause.downcast_ref() {
            return ChatTemplateError::Refused(reason.clone());
        }
        let kind = cause.downcast_ref().map(Error::kind);
        if kind == Some(ErrorKind::OutOfFuel) {
            return ChatTemplateError::TooCostly;
        }
        source = cause.source();
    }
    ChatTemplateError::Failed(error.to_string())
}

/// `text` up to the [`CONTINUE`] at the end of its last message, as transformers cuts it. A template that
/// trims the mark would have trimmed the message.
fn continued(mut text: String, content: &str) -> Result<String, ChatTemplateError> {
    let end = text
        .rfind(CONTINUE.trim_end())
        .filter(|_| text.contains(content.trim()))
        .ok_or(ChatTemplateError::NotContinuable)?;
    let is_trimmed = !text[end..].starts_with(CONTINUE);
    text.truncate(end);
    if is_trimmed {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// Templates for training mark what the assistant says by `{% generation %}` and `{% endgeneration %}`,
/// which render what is between them: as `{% if true %}` and `{% endif %}` do.
fn without_generation_marks(source: &str) -> Cow<'_, str> {
    const OPEN: &str = "{%";
    let mut out = String::new();
    let mut copied = 0;
    for (at, _) in source.match_indices(OPEN) {
        let inner = at + OPEN.len();
        let inner = inner + usize::from(source[inner..].starts_with(['-', '+']));
        let word = source[inner..].trim_start();
        let start = source.len() - word.len();
        for (mark, instead) in [("generation", "if true"), ("endgeneration", "endif")] {
            let Some(rest) = word.strip_prefix(mark) else {
                continue;
            };
            let rest = rest.trim_start();
            if rest.trim_start_matches(['-', '+']).starts_with("%}") {
                out.push_str(&source[copied..start]);
                out.push_str(instead);
                copied = start + mark.len();
            }
        }
    }
    if copied == 0 {
        return Cow::Borrowed(source);
    }
    out.push_str(&source[copied..]);
    Cow::Owned(out)
}
