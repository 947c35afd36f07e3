//! Chat templates, and the guard around what the messages say. Owns the Jinja environment, which
//! offers what Hugging Face's does, and the splitting of a rendered chat into text and the special
//! tokens that the template, and not a message, wrote. Encoding the text is the parent's.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::Value as Json;

use super::{ChatOptions, Message};
use crate::{Error, Result};

/// Instructions that one rendering may take: a thousand times what long chats need, and spent
/// in about a second.
const FUEL: u64 = 20_000_000;
/// Spaces that `tojson` indents by at most.
const MAX_INDENT: usize = 16;

/// A chat template with its variables.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    variables: Vec<(String, String)>,
}

impl ChatTemplate {
    pub(super) fn new(source: String, variables: Vec<(String, String)>) -> Self {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_keep_trailing_newline(false);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        Self { environment, source: without_generation_tags(&source), variables }
    }

    pub(super) fn render(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        add_generation_prompt: bool,
    ) -> Result<String> {
        let message = |m: &Message| {
            let own = [("role", m.role.as_str()), ("content", m.content.as_str())];
            let own = own.map(|(key, value)| (key.to_string(), Value::from(value))).into_iter();
            let fields = m.fields.iter().map(|(key, value)| (key.clone(), Value::from_serialize(value)));
            own.chain(fields).collect::<BTreeMap<String, Value>>()
        };
        let messages: Vec<_> = messages.iter().map(message).collect();
        let mut context: BTreeMap<&str, Value> =
            self.variables.iter().map(|(name, value)| (name.as_str(), Value::from(value.as_str()))).collect();
        // As Hugging Face has them: none, which is not undefined.
        context.insert("documents", Value::from(()));
        context.insert(
            "tools",
            match options.tools.as_slice() {
                [] => Value::from(()),
                tools => Value::from_serialize(tools),
            },
        );
        for (name, value) in &options.variables {
            context.insert(name, Value::from_serialize(value));
        }
        context.insert("messages", Value::from_serialize(&messages));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        let template = self.environment.template_from_str(&self.source).map_err(template_error)?;
        template.render(context).map_err(template_error)
    }

    /// A character that neither the template nor a message contains, to mark places with.
    pub(super) fn free_mark(&self, messages: &[Message], options: &ChatOptions) -> Result<char> {
        let json = |value: &Json, mark: char| contains(value, mark);
        // Code points that no text should contain, then those for private use.
        ('\u{FDD0}'..='\u{FDEF}')
            .chain('\u{E000}'..='\u{F8FF}')
            .find(|&mark| {
                !self.source.contains(mark)
                    && !self.variables.iter().any(|(_, value)| value.contains(mark))
                    && !options.tools.iter().any(|tool| json(tool, mark))
                    && !messages.iter().any(|m| {
                        m.role.contains(mark)
                            || m.content.contains(mark)
                            || m.fields.values().any(|value| json(value, mark))
                    })
            })
            .ok_or_else(|| Error::ChatTemplate {
                message: "the messages use every private-use character there is".into(),
            })
    }
}

/// Whether a string in `value` contains `mark`.
fn contains(value: &Json, mark: char) -> bool {
    match value {
        Json::String(text) => text.contains(mark),
        Json::Array(items) => items.iter().any(|item| contains(item, mark)),
        Json::Object(fields) => fields.iter().any(|(key, value)| key.contains(mark) || contains(value, mark)),
        Json::Null | Json::Bool(_) | Json::Number(_) => false,
    }
}

fn template_error(error: minijinja::Error) -> Error {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Error::ChatTemplate { message }
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Makes `{% generation %}` blocks plain ones. They mark what to train on, and Jinja itself does
/// not know them; as a condition that always holds they keep their effect on white space.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag_on)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((tag, after)) = tag_on.split_once("%}") else {
            rest = tag_on;
            break;
        };
        match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => {
                // The tag may hold a string with "{%" in it, so only its opening is behind us.
                rest = tag_on;
                continue;
            }
        }
        out.push_str("%}");
        rest = after;
    }
    out.push_str(rest);
    out
}

/// JSON as Python writes it, which is what templates were made with. Jinja's own filter would
/// escape what HTML escapes.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let mut out = Vec::new();
    let written = match options.get::<Option<usize>>("indent")? {
        Some(indent) => {
            let indent = " ".repeat(indent.min(MAX_INDENT));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonJson)),
    };
    let fail = |e: String| minijinja::Error::new(ErrorKind::BadSerialization, e);
    written.map_err(|e| fail(e.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8(out).map_err(|e| fail(e.to_string()))?))
}

/// A space after each comma and colon.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn strftime_now(format: String) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    strftime(&format, now)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats seconds since 1970 (UTC) with those codes of C's `strftime` that templates use; others
/// stay as they are.
fn strftime(format: &str, seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let name = |names: &[&'static str], index: u64| -> &'static str {
        usize::try_from(index).ok().and_then(|i| names.get(i).copied()).unwrap_or_default()
    };
    let (month_name, weekday) = (name(&MONTHS, month - 1), name(&WEEKDAYS, days % 7));
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out.extend(month_name.chars().take(3)),
            Some('A') => out += weekday,
            Some('a') => out.extend(weekday.chars().take(3)),
            Some('H') => out += &format!("{:02}", second / 3600),
            Some('M') => out += &format!("{:02}", second / 60 % 60),
            Some('S') => out += &format!("{:02}", second % 60),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day (from 1) of a day counted from 1 January 1970.
fn date(days: u64) -> (u64, u64, u64) {
    // In years that begin on 1 March the leap day comes last. 719468 days lie between
    // 1 March of year 0 and 1970; the calendar repeats every 400 years, or 146097 days.
    let days = days + 719_468;
    let (cycle, in_cycle) = (days / 146_097, days % 146_097);
    let year = (in_cycle - in_cycle / 1460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
    let in_year = in_cycle - (365 * year + year / 4 - year / 100);
    // The months from March on have 31, 30, 31, 30, 31 days, over and over: 153 in five.
    let from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (cycle * 400 + year + u64::from(month <= 2), month, day)
}

/// A special token, to be found in a rendered chat.
pub(super) struct SpecialToken {
    pub(super) text: String,
    pub(super) id: u32,
    /// It takes the white space before it.
    pub(super) lstrip: bool,
    /// It takes the white space after it.
    pub(super) rstrip: bool,
}

/// A part of a rendered chat.
pub(super) enum Segment {
    /// To be encoded with special tokens as text.
    Text(String),
    /// A special token that the template wrote.
    Special(u32),
}

/// All special tokens, by their first character.
pub(super) struct SpecialTable {
    by_first: HashMap<char, Vec<SpecialToken>>,
    longest: usize,
}

impl SpecialTable {
    pub(super) fn new(tokens: impl Iterator<Item = SpecialToken>) -> Self {
        let mut by_first: HashMap<char, Vec<SpecialToken>> = HashMap::new();
        for token in tokens {
            if let Some(first) = token.text.chars().next() {
                by_first.entry(first).or_default().push(token);
            }
        }
        for list in by_first.values_mut() {
            list.sort_by_key(|token| std::cmp::Reverse(token.text.len()));
        }
        let longest = by_first.values().flatten().map(|token| token.text.len()).max().unwrap_or(0);
        Self { by_first, longest }
    }

    fn starting_like(&self, rest: &str) -> &[SpecialToken] {
        rest.chars().next().and_then(|c| self.by_first.get(&c)).map_or(&[], Vec::as_slice)
    }

    /// The longest special token at the beginning of `rest`.
    fn at(&self, rest: &str) -> Option<&SpecialToken> {
        self.starting_like(rest).iter().find(|token| rest.starts_with(&token.text))
    }

    /// Puts `mark` where a special token begins in `text`, or could begin or go on together with
    /// what the template writes around it.
    pub(super) fn guard(&self, text: &str, mark: char) -> String {
        let mut out = String::with_capacity(text.len());
        if !text.is_empty() && self.goes_on_in(text) {
            out.push(mark);
        }
        for (at, c) in text.char_indices() {
            let rest = text.get(at..).unwrap_or_default();
            let cut_off = rest.len() < self.longest
                && self.starting_like(rest).iter().any(|token| token.text.starts_with(rest));
            if cut_off || self.at(rest).is_some() {
                out.push(mark);
            }
            out.push(c);
        }
        out
    }

    /// As [`guard`](Self::guard), but for a plain word: templates compare names, and make tokens of them.
    pub(super) fn guard_name(&self, text: &str, mark: char) -> String {
        let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        if text.chars().all(plain) { text.to_string() } else { self.guard(text, mark) }
    }

    /// Guards the strings of a JSON value.
    pub(super) fn guard_value(&self, value: &Json, mark: char) -> Json {
        match value {
            Json::String(text) => Json::String(self.guard_name(text, mark)),
            Json::Array(items) => Json::Array(items.iter().map(|i| self.guard_value(i, mark)).collect()),
            Json::Object(fields) => {
                let guarded = |(key, value): (&String, &Json)| {
                    (self.guard_name(key, mark), self.guard_value(value, mark))
                };
                Json::Object(fields.iter().map(guarded).collect())
            }
            other => other.clone(),
        }
    }

    /// Whether a special token that begins before `text` could go on in it.
    fn goes_on_in(&self, text: &str) -> bool {
        self.by_first.values().flatten().any(|token| {
            token.text.char_indices().skip(1).any(|(at, _)| {
                let end = token.text.get(at..).unwrap_or_default();
                text.starts_with(end) || end.starts_with(text)
            })
        })
    }

    /// Splits a rendered chat at its special tokens, but for those with a `mark` before or within;
    /// the marks are taken out.
    pub(super) fn split(&self, rendered: &str, mark: char) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut text = String::new();
        let mut marked = false;
        let mut rest = rendered;
        while let Some(c) = rest.chars().next() {
            let special = if marked { None } else { self.at(rest) };
            let taken = special.map_or(c.len_utf8(), |token| token.text.len());
            rest = rest.get(taken..).unwrap_or_default();
            if let Some(token) = special {
                if token.lstrip {
                    text.truncate(text.trim_end().len());
                }
                if token.rstrip {
                    rest = rest.trim_start();
                }
                if !text.is_empty() {
                    segments.push(Segment::Text(std::mem::take(&mut text)));
                }
                segments.push(Segment::Special(token.id));
            } else if c != mark {
                text.push(c);
            }
            marked = c == mark;
        }
        if !text.is_empty() {
            segments.push(Segment::Text(text));
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(strftime("%d %b %Y, %A %H:%M:%S", 0), "01 Jan 1970, Thursday 00:00:00");
        assert_eq!(strftime("%Y-%m-%d %a", 951_782_400), "2000-02-29 Tue");
        assert_eq!(strftime("%d %B %y 100%% %Q %", 1_735_689_599), "31 December 24 100% %Q %");
    }

    #[test]
    fn generation_tags_become_conditions() {
        assert_eq!(
            without_generation_tags("a{%- generation -%}b{% endgeneration %}c{{ '{%' }}{% if x %}"),
            "a{%- if true -%}b{% endif %}c{{ '{%' }}{% if x %}"
        );
    }

    #[test]
    fn a_marked_token_and_one_across_the_border_stay_text() {
        let token = SpecialToken { text: "<|x|>".into(), id: 7, lstrip: false, rstrip: false };
        let table = SpecialTable::new(std::iter::once(token));
        for (before, content, after) in
            [("", "<|x|>", ""), ("", "<|x", "|>"), ("<|", "x|>", ""), ("<", "|x|", ">")]
        {
            let rendered = format!("{before}{}{after}", table.guard(content, '\u{FDD0}'));
            let segments = table.split(&rendered, '\u{FDD0}');
            assert!(matches!(segments.as_slice(), [Segment::Text(text)] if text == "<|x|>"), "{rendered:?}");
        }
    }
}
