//! Chat templates, and the guard around what the messages say. Owns the Jinja environment, which
//! offers what Hugging Face's does, and the splitting of a rendered chat into text and the special
//! tokens that the template, and not a message, wrote. Encoding the text is the parent's.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, State};
use serde::Serialize;
use serde_json::Value as Json;

use super::{ChatOptions, Message, bounds};
use crate::native::{self, Unfinished};
use crate::{Error, Result};

/// What one rendering may take: each instruction is one, and so are 64 bytes of what a template writes,
/// joins or filters. It bounds time and memory alike (320 MB), and is three times what a chat of a
/// thousand messages of ten thousand characters needs.
const FUEL: u64 = 5_000_000;
/// Bytes of text that one unit pays for in a filter of ours. Going through a value takes longer than
/// copying text.
const JSON_BYTES_PER_FUEL: usize = 4;
/// Bytes of the longest template; known ones have a tenth.
const MAX_SOURCE: usize = 256 << 10;
/// Bytes of a rendered chat, beside the template's own and `RENDERED_PER_BYTE` for each byte of the messages.
/// What is rendered is encoded, which takes two hundred times the memory of the text.
const MAX_RENDERED: usize = 1 << 20;
const RENDERED_PER_BYTE: usize = 8;
/// Stack for rendering, which goes down into values as deep as macros can hand them on to themselves.
const STACK: usize = 64 << 20;
/// The longest that rendering may take. It takes milliseconds, and fuel ends most of what does not; but the engine
/// compares values, and looks them up, for as long as that takes. A thread that is late is left behind.
const LIMIT: Duration = Duration::from_secs(10);
/// Spaces that `tojson` indents by at most.
const MAX_INDENT: usize = 16;

/// A chat template with its variables.
pub(super) struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    variables: Vec<(String, String)>,
}

impl ChatTemplate {
    pub(super) fn new(source: String, variables: Vec<(String, String)>) -> Self {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(false);
        // Only delimiters can be wrong, and these are the usual ones.
        environment.set_syntax(syntax.build().unwrap_or_default());
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        bounds::add(&mut environment);
        let source = bounds::prepared(&source).into();
        Self { environment: Arc::new(environment), source, variables }
    }

    pub(super) fn render(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        add_generation_prompt: bool,
    ) -> Result<String> {
        if self.source.len() > MAX_SOURCE {
            let found = self.source.len();
            let message = format!(
                "expected at most {MAX_SOURCE} bytes, found {found}; choose another (--chat-template)"
            );
            return Err(Error::ChatTemplate { message });
        }
        let most = MAX_RENDERED + self.source.len() + RENDERED_PER_BYTE * size(messages, options);
        let message = |m: &Message| {
            let own = [("role", m.role.as_str()), ("content", m.content.as_str())];
            let own = own.map(|(key, value)| (key.to_string(), Value::from(value))).into_iter();
            let fields = m.fields.iter().map(|(key, value)| (key.clone(), Value::from(Serde(value))));
            own.chain(fields).collect::<BTreeMap<String, Value>>()
        };
        let messages: Vec<_> = messages.iter().map(message).collect();
        let mut context: BTreeMap<String, Value> =
            self.variables.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
        // As Hugging Face has them: none, which is not undefined.
        context.insert("documents".into(), Value::from(()));
        context.insert(
            "tools".into(),
            match options.tools.as_slice() {
                [] => Value::from(()),
                tools => Value::from(Serde(tools)),
            },
        );
        for (name, value) in &options.variables {
            context.insert(name.clone(), Value::from(Serde(value)));
        }
        context.insert("messages".into(), Value::from(messages));
        context.insert("add_generation_prompt".into(), Value::from(add_generation_prompt));
        let (environment, source) = (self.environment.clone(), self.source.clone());
        let render = move || environment.template_from_str(&source)?.render(context);
        let rendered = native::with_stack(STACK, LIMIT, render).map_err(|unfinished| Error::ChatTemplate {
            message: match unfinished {
                Unfinished::Late => format!("it takes longer than {} s; choose another with --chat-template, or do without by --raw", LIMIT.as_secs()),
                Unfinished::Failed => format!("there is no thread with a stack of {STACK} bytes for it, or the engine failed; do without by --raw"),
            },
        })?;
        match rendered.map_err(template_error)? {
            text if text.len() > most => {
                let message = format!(
                    "it makes {} bytes of these messages, more than {most}; choose another with --chat-template",
                    text.len()
                );
                Err(Error::ChatTemplate { message })
            }
            text => Ok(text),
        }
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

/// Bytes of what a chat is rendered from.
fn size(messages: &[Message], options: &ChatOptions) -> usize {
    let json = |value: &Json| value.to_string().len();
    let fields = |fields: &serde_json::Map<String, Json>| -> usize {
        fields.iter().map(|(key, value)| key.len() + json(value)).sum()
    };
    let message = |m: &Message| m.role.len() + m.content.len() + fields(&m.fields);
    let tools: usize = options.tools.iter().map(json).sum();
    messages.iter().map(message).sum::<usize>() + tools + fields(&options.variables)
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
    if error.kind() == ErrorKind::OutOfFuel {
        let message = format!(
            "out of fuel: it takes more than {FUEL} steps, or {} MB of text, for these messages: it loops without end, \
             or the chat is too long; choose another with --chat-template, or do without by --raw",
            FUEL * 64 / 1_000_000
        );
        return Error::ChatTemplate { message };
    }
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

/// JSON as Python writes it, which is what templates were made with. Jinja's own filter would
/// escape what HTML escapes.
fn to_json(state: &State, value: Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let mut out = Metered { text: Vec::new(), unpaid: 0, state, failure: None };
    let written = match options.get::<Option<usize>>("indent")? {
        Some(indent) => {
            let indent = " ".repeat(indent.min(MAX_INDENT));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonJson)),
    };
    if let Some(failure) = out.failure {
        return Err(failure);
    }
    let fail = |e: String| minijinja::Error::new(ErrorKind::BadSerialization, e);
    written.map_err(|e| fail(e.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8(out.text).map_err(|e| fail(e.to_string()))?))
}

/// Text that is paid for while it grows: a template can make short lists of endless ones.
struct Metered<'a, 'b, 'env> {
    text: Vec<u8>,
    /// Bytes that are not paid for yet.
    unpaid: usize,
    state: &'a State<'b, 'env>,
    failure: Option<minijinja::Error>,
}

impl io::Write for Metered<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unpaid += bytes.len();
        let fuel = (self.unpaid / JSON_BYTES_PER_FUEL) as u64;
        self.unpaid %= JSON_BYTES_PER_FUEL;
        if let Err(failure) = self.state.consume_fuel(fuel) {
            self.failure = Some(failure);
            return Err(io::Error::other("out of fuel"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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

/// All special tokens, by their first character and in order: hostile files have many that begin alike.
pub(super) struct SpecialTable {
    by_first: HashMap<char, BTreeMap<String, SpecialToken>>,
    longest: usize,
}

impl SpecialTable {
    pub(super) fn new(tokens: impl Iterator<Item = SpecialToken>) -> Self {
        let mut by_first: HashMap<char, BTreeMap<String, SpecialToken>> = HashMap::new();
        for token in tokens {
            if let Some(first) = token.text.chars().next() {
                by_first.entry(first).or_default().entry(token.text.clone()).or_insert(token);
            }
        }
        let longest = by_first.values().flat_map(BTreeMap::keys).map(String::len).max().unwrap_or(0);
        Self { by_first, longest }
    }

    fn starting_like(&self, rest: &str) -> Option<&BTreeMap<String, SpecialToken>> {
        self.by_first.get(&rest.chars().next()?)
    }

    /// The longest special token at the beginning of `rest`.
    fn at(&self, rest: &str) -> Option<&SpecialToken> {
        let tokens = self.starting_like(rest)?;
        let mut most = rest;
        loop {
            // Of all that begin `most` the longest comes last, but others may come between them.
            let (text, token) =
                tokens.range::<str, _>((Bound::Unbounded, Bound::Included(most))).next_back()?;
            if rest.starts_with(text.as_str()) {
                return Some(token);
            }
            let shared = text.chars().zip(most.chars()).take_while(|(a, b)| a == b);
            most = most.get(..shared.map(|(c, _)| c.len_utf8()).sum())?;
        }
    }

    /// Whether a special token begins with all of `rest`.
    fn begins_with(&self, rest: &str) -> bool {
        let from = |tokens: &BTreeMap<String, SpecialToken>| {
            let found = tokens.range::<str, _>((Bound::Included(rest), Bound::Unbounded)).next();
            found.is_some_and(|(text, _)| text.starts_with(rest))
        };
        self.starting_like(rest).is_some_and(from)
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
            let cut_off = rest.len() < self.longest && self.begins_with(rest);
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
        self.by_first.values().flat_map(BTreeMap::values).any(|token| {
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
    fn the_longest_special_token_is_found() {
        let token = |text: &str| SpecialToken { text: text.into(), id: 0, lstrip: false, rstrip: false };
        let table =
            SpecialTable::new(["<", "<a", "<aa", "<ab", "<abcd", "<b\u{e9}", "x"].map(token).into_iter());
        let cases =
            [("<abc", Some("<ab")), ("<ac", Some("<a")), ("<abcde", Some("<abcd")), ("<b\u{ea}", Some("<"))];
        for (rest, expected) in cases.into_iter().chain([("y", None), ("", None), ("<aa", Some("<aa"))]) {
            assert_eq!(table.at(rest).map(|token| token.text.as_str()), expected, "{rest}");
        }
        assert!(table.begins_with("<abc") && table.begins_with("<") && !table.begins_with("<ac"));
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
