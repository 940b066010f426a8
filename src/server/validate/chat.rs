//! A chat: a completion of what the model's template makes of its messages.

use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use super::super::state::AppState;
use super::super::wire::{ApplyTemplateRequest, ChatRequest, Content, MessageFields, Object};
use super::completion::{CompletionJob, Given, Outline, check_size, check_stops, stops, streaming};
use super::constraint::{FormFields, form};
use super::decoding::{DecodeFields, NEGATIVE_PROMPT, plan, repetitions, size};
use super::logits::chat_logprobs;
use super::neutral::{neutral, only};
use super::{Place, check_model, encode};
use crate::decode::DecodePlan;
use crate::text::{ChatEnding, ChatMessage, ChatTemplateError};

/// Tokens of an answer when the request does not say. OpenAI's API then takes what the model's limit
/// leaves; here every token asked for is a slot that each denoise step computes.
const DEFAULT_MAX_TOKENS: usize = 256;

/// The role that OpenAI's newer models have in the place of `system`.
const DEVELOPER: &str = "developer";

/// What a template is applied to.
#[derive(Clone)]
struct Templated {
    messages: Option<Vec<Object<MessageFields>>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    variables: Option<Map<String, Value>>,
}

impl Templated {
    /// The same with another text in the last message of the user.
    fn with_last_of_user(&self, text: String) -> Result<Self, ApiError> {
        let mut other = self.clone();
        let mut messages = other.messages.iter_mut().flatten().rev();
        let of_user = messages.find(|Object(message)| message.role.as_deref() == Some("user"));
        let Some(Object(message)) = of_user else {
            return Err(ApiError::unusable(
                NEGATIVE_PROMPT,
                "it stands in the place of the last message of the user, and there is none; allowed: null",
            ));
        };
        message.content = Some(Content::Text(text));
        Ok(other)
    }
}

/// Checks a request for an answer to a chat.
pub fn chat(request: ChatRequest, state: &AppState) -> Result<CompletionJob, ApiError> {
    check_model(request.model.as_deref(), state)?;
    refuse_unsupported(&request)?;
    let streaming = streaming(request.stream, request.stream_options, request.diffusing)?;
    let stops = stops(request.stop, "stop", state)?;
    let top_logprobs = chat_logprobs(request.logprobs, request.top_logprobs)?;
    let n = repetitions(request.n, 1, state)?;
    let asked = match (request.max_completion_tokens, request.max_tokens) {
        (Some(_), Some(_)) => {
            return Err(ApiError::unusable(
                "max_tokens",
                "max_completion_tokens is given as well; allowed: one of them",
            ));
        }
        (Some(tokens), None) => Some(("max_completion_tokens", size(tokens))),
        (None, tokens) => tokens.map(|tokens| ("max_tokens", size(tokens))),
    };
    let templated = Templated {
        messages: request.messages,
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
        variables: request.chat_template_kwargs,
    };
    // First, so that what is wrong with the messages is not said of the negative prompt.
    let text = render(templated.clone(), state)?;
    let mut diffusion = request.diffusion;
    if let Some(Object(options)) = &mut diffusion
        && let Some(text) = options.negative_prompt.take()
    {
        options.negative_prompt = Some(render(templated.with_last_of_user(text)?, state)?);
    }
    let fields = DecodeFields {
        temperature: request.temperature,
        top_p: request.top_p,
        min_p: request.min_p,
        top_k: request.top_k,
        seed: request.seed,
        logit_bias: request.logit_bias,
        diffusion,
        prompt_place: Place::Bare,
    };
    let plan = plan(fields, state)?;
    let given = Given {
        tokens: encode(&text, Place::Bare, "messages", state)?,
        path: "messages".into(),
        text: None,
    };
    let (param, tokens) = match asked {
        Some(asked) => asked,
        None => (
            "max_completion_tokens",
            default_size(given.tokens.len(), &plan, state)?,
        ),
    };
    check_size(param, tokens, state)?;
    // Last, as it may take a while.
    let fields = FormFields {
        response_format: request.response_format,
        grammar: request.grammar,
        json_schema: None,
    };
    let language = form(fields, state)?;
    check_stops(&stops, language.is_some())?;
    let outline = Outline {
        size_param: param,
        max_tokens: tokens,
        suffix_param: "suffix",
        suffix: &[],
        echo: false,
        plan: &plan,
        language: language.as_ref(),
    };
    let prompt = outline.lay_out(given, state)?;
    Ok(CompletionJob {
        prompts: vec![prompt],
        n,
        plan,
        stops,
        top_logprobs,
        time_limit: None,
        streaming,
    })
}

/// Slots of the gap after a chat of so many tokens, where the request does not say.
fn default_size(chat: usize, plan: &DecodePlan, state: &AppState) -> Result<usize, ApiError> {
    let spec = state.engine.spec();
    match spec.longest_gap(plan, chat, DEFAULT_MAX_TOKENS) {
        0 => {
            let what = format_args!("messages has {chat} tokens and an answer at least 1");
            let slots = spec.canvas_length(plan, chat..chat + 1, chat + 1);
            let limit = state.slot_limit(spec.longest_canvas(plan));
            Err(ApiError::canvas_too_long("messages", what, slots, limit))
        }
        longest => Ok(longest),
    }
}

/// The text that the model's template makes of a chat.
pub fn apply_template(request: ApplyTemplateRequest, state: &AppState) -> Result<String, ApiError> {
    check_model(request.model.as_deref(), state)?;
    let templated = Templated {
        messages: request.messages,
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
        variables: request.chat_template_kwargs,
    };
    render(templated, state)
}

fn render(templated: Templated, state: &AppState) -> Result<String, ApiError> {
    let template = state
        .chat_template
        .as_ref()
        .ok_or_else(|| ApiError::no_chat_template(&state.model_name))?;
    let given = templated
        .messages
        .ok_or_else(|| ApiError::missing("messages", "at least one message"))?;
    if given.is_empty() {
        return Err(ApiError::value(
            "messages",
            "an empty list",
            "at least one message",
        ));
    }
    let messages = given
        .into_iter()
        .enumerate()
        .map(|(i, Object(fields))| message(fields, &format!("messages[{i}]")))
        .collect::<Result<Vec<_>, _>>()?;
    let is_continued = templated.continue_final_message.unwrap_or(false);
    let ending = match templated.add_generation_prompt {
        Some(true) if is_continued => {
            return Err(ApiError::unusable(
                "add_generation_prompt",
                "true begins another message, and continue_final_message continues the last one; allowed: one of them",
            ));
        }
        _ if is_continued => ChatEnding::Continued,
        None | Some(true) => ChatEnding::Answer,
        Some(false) => ChatEnding::Closed,
    };
    if let (ChatEnding::Continued, Some(last)) = (ending, messages.last())
        && (last.role != "assistant" || last.content.trim().is_empty())
    {
        return Err(ApiError::unusable(
            "continue_final_message",
            "the last message must be one of the assistant's that is not empty",
        ));
    }
    let variables = templated.variables.unwrap_or_default();
    template
        .render(&messages, ending, &variables)
        .map_err(|error| {
            let param = match error {
                ChatTemplateError::Reserved { .. } => "chat_template_kwargs",
                _ => "messages",
            };
            ApiError::unusable(param, error)
        })
}

fn message(fields: MessageFields, path: &str) -> Result<ChatMessage, ApiError> {
    let at = |field: &str| format!("{path}.{field}");
    const ROLES: &str = r#""system", "developer", "user", "assistant""#;
    let role = fields
        .role
        .ok_or_else(|| ApiError::missing(&at("role"), ROLES))?;
    let role = match role.as_str() {
        DEVELOPER => "system".to_owned(),
        "system" | "user" | "assistant" => role,
        "tool" | "function" => {
            return Err(ApiError::unsupported(
                &at("role"),
                format_args!("{role:?}"),
                format_args!("tools are not supported; allowed: {ROLES}"),
            ));
        }
        _ => {
            return Err(ApiError::value(
                &at("role"),
                format_args!("{role:?}"),
                ROLES,
            ));
        }
    };
    for (field, given) in [
        ("refusal", &fields.refusal),
        ("audio", &fields.audio),
        ("tool_call_id", &fields.tool_call_id),
        ("function_call", &fields.function_call),
    ] {
        only(&at(field), given.as_ref(), &[])?;
    }
    for (field, given) in [
        ("annotations", &fields.annotations),
        ("tool_calls", &fields.tool_calls),
    ] {
        only(&at(field), given.as_ref(), &[json!([])])?;
    }
    let content = match fields.content {
        None => {
            return Err(ApiError::missing(
                &at("content"),
                r#"a string, or a list of parts {"type": "text", "text": "…"}"#,
            ));
        }
        Some(Content::Text(text)) => text,
        // As llama.cpp and vLLM join them for templates that know texts only.
        Some(Content::Parts(parts)) => parts
            .into_iter()
            .enumerate()
            .map(|(i, part)| {
                let at = |field: &str| format!("{path}.content[{i}].{field}");
                match (part.kind.as_deref(), part.text) {
                    (None, _) => Err(ApiError::missing(&at("type"), r#""text""#)),
                    (Some("text"), Some(text)) => Ok(text),
                    (Some("text"), None) => Err(ApiError::missing(&at("text"), "a string")),
                    (Some(kind), _) => Err(ApiError::unsupported(
                        &at("type"),
                        format_args!("{kind:?}"),
                        r#"the model reads text only; allowed: "text""#,
                    )),
                }
            })
            .collect::<Result<Vec<_>, _>>()?
            .join("\n"),
    };
    Ok(ChatMessage {
        role,
        content,
        name: fields.name,
    })
}

/// Fields of OpenAI's API that have no effect here are taken at the value that has none there.
fn refuse_unsupported(request: &ChatRequest) -> Result<(), ApiError> {
    neutral("presence_penalty", request.presence_penalty, 0.0)?;
    neutral("frequency_penalty", request.frequency_penalty, 0.0)?;
    let empty_list = || vec![json!([])];
    for (param, given, allowed) in [
        ("tools", &request.tools, empty_list()),
        ("tool_choice", &request.tool_choice, vec![json!("none")]),
        (
            "parallel_tool_calls",
            &request.parallel_tool_calls,
            vec![json!(true)],
        ),
        ("functions", &request.functions, empty_list()),
        ("function_call", &request.function_call, vec![json!("none")]),
        ("modalities", &request.modalities, vec![json!(["text"])]),
        ("audio", &request.audio, vec![]),
        ("prediction", &request.prediction, vec![]),
        (
            "prompt_cache_options",
            &request.prompt_cache_options,
            vec![],
        ),
        ("moderation", &request.moderation, vec![]),
        ("web_search_options", &request.web_search_options, vec![]),
        (
            "reasoning_effort",
            &request.reasoning_effort,
            vec![json!("none")],
        ),
        ("verbosity", &request.verbosity, vec![json!("medium")]),
        (
            "service_tier",
            &request.service_tier,
            vec![json!("auto"), json!("default")],
        ),
        ("store", &request.store, vec![json!(false)]),
        ("metadata", &request.metadata, vec![json!({})]),
    ] {
        only(param, given.as_ref(), &allowed)?;
    }
    Ok(())
}
