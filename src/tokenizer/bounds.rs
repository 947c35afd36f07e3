//! Bounds for what a chat template makes. The engine counts instructions and what is written, but texts that it
//! makes of lists only when they are done, and lists can hold a large text many times. So what may become
//! text goes through a filter first, which the source is given here.

use std::borrow::Cow;

use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind, State, Value};

/// How deep lists may lie in lists where a variable holds them. JSON has half of that.
const MAX_DEPTH: usize = 250;
/// Names of the filters that a template gets, which none has of its own: for what `{% set %}` gives to a variable
/// and to an attribute, and for what becomes text.
const BOUNDED: &str = "wgllama_bounded";
const BOUNDED_ATTRIBUTE: &str = "wgllama_bounded_attribute";
const MEASURED: &str = "wgllama_measured";
/// Bytes of text that one unit of fuel pays for, a quarter of what the engine takes: it may copy the text of a list
/// several times.
const BYTES_PER_FUEL: usize = 16;

/// Filters that make no text of a list, or pay for it. The others make text, or numbers.
const OF_LISTS: &str = "attr batch bool chain count d default dictsort first groupby items last length list map max min \
    reject rejectattr reverse select selectattr slice sort split sum tojson unique zip";
/// Functions that want text.
const OF_TEXTS: [&str; 2] = ["raise_exception", "strftime_now"];
/// Words that end an operand.
const KEYWORDS: [&str; 9] = ["and", "else", "elif", "for", "if", "in", "is", "not", "or"];

type Checked<T> = std::result::Result<T, minijinja::Error>;

/// The filters, and what is written by `{{ }}`.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter(BOUNDED, |state: &State, value: Value| bounded(state, value, false));
    environment.add_filter(BOUNDED_ATTRIBUTE, |state: &State, value: Value| bounded(state, value, true));
    environment.add_filter(MEASURED, measured);
    environment.set_formatter(|out, state, value| {
        minijinja::escape_formatter(out, state, &measured(state, value.clone())?)
    });
}

/// A template as the engine gets it. `{% generation %}` blocks become plain ones: they mark what to train
/// on, and Jinja itself does not know them; as a condition that always holds they keep their effect on
/// white space. What `{% set %}` gives to a variable goes through a filter; see [`bounded`]; so does what may become
/// text; see [`measured`].
pub(super) fn prepared(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{').filter(|at| at + 1 < rest.len()) {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = match tag.as_bytes()[1] {
            b'{' => tag_end(&tag[2..], '}'),
            b'%' => tag_end(&tag[2..], '%'),
            b'#' => tag[2..].find("#}"),
            _ => None,
        };
        let Some(inner) = end.and_then(|end| tag.get(2..2 + end)) else {
            // The brace is text, or nothing closes the tag.
            out.push('{');
            rest = &tag[1..];
            continue;
        };
        out.push_str(&tag[..2]);
        let signs = |c: char| c.is_whitespace() || c == '-' || c == '+';
        let word = inner.trim_matches(signs);
        let changed = match (tag.as_bytes()[1], word) {
            (b'#', _) => Cow::Borrowed(inner),
            (b'%', "generation") => inner.replacen("generation", "if true", 1).into(),
            (b'%', "endgeneration") => inner.replacen("endgeneration", "endif", 1).into(),
            (b'%', set) if set.starts_with("set") => match inner.split_once('=') {
                // Of a block with a filter, a sign of equality may stand in a string.
                Some((target, value)) if !target.contains(['"', '\'', '|']) => {
                    let filter = if target.contains(['.', '[']) { BOUNDED_ATTRIBUTE } else { BOUNDED };
                    let sign = value.len() - value.trim_end_matches(['-', '+']).len();
                    let (value, sign) = value.split_at(value.len() - sign);
                    format!("{target}=({})|{filter} {sign}", texts_measured(value)).into()
                }
                _ => texts_measured(inner),
            },
            _ => texts_measured(inner),
        };
        out.push_str(&changed);
        rest = &tag[2 + inner.len()..];
        if tag.as_bytes()[1] == b'%' && word == "raw" {
            let ends =
                |(at, _): &(usize, &str)| rest[at + 2..].trim_start_matches(signs).starts_with("endraw");
            let end = rest.match_indices("{%").find(ends).map_or(rest.len(), |(at, _)| at);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    out
}

/// Where the tag ends that `text` begins in, if it does: before `sign` and a brace, outside of strings and of
/// braces of its own.
fn tag_end(text: &str, sign: char) -> Option<usize> {
    let (mut quote, mut escaped, mut last, mut open) = (None, false, ' ', 0usize);
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if last == sign && c == '}' && open == 0 => return Some(at - 1),
            None if c == '{' => open += 1,
            // The first of two that close a tag closes nothing else.
            None if c == '}' && open > 0 => {
                open -= 1;
                last = ' ';
                continue;
            }
            None => {}
        }
        last = c;
    }
    None
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Word,
    Literal,
    Open,
    Close,
    Sign,
}

/// The words, literals and signs of an expression, with the places where they end.
fn tokens(text: &str) -> Vec<(Kind, &str, usize)> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        let many = |of: &dyn Fn(char) -> bool| rest.find(|c| !of(c)).unwrap_or(rest.len());
        let (kind, length) = match c {
            _ if c.is_whitespace() => {
                at += c.len_utf8();
                continue;
            }
            '"' | '\'' => {
                let mut escaped = false;
                let end = rest.char_indices().skip(1).find(|(_, d)| {
                    let closes = *d == c && !escaped;
                    escaped = *d == '\\' && !escaped;
                    closes
                });
                (Kind::Literal, end.map_or(rest.len(), |(end, _)| end + 1))
            }
            _ if c.is_ascii_digit() => (Kind::Literal, many(&|c| c.is_alphanumeric() || c == '_')),
            _ if c.is_alphabetic() || c == '_' => (Kind::Word, many(&|c| c.is_alphanumeric() || c == '_')),
            '(' | '[' | '{' => (Kind::Open, 1),
            ')' | ']' | '}' => (Kind::Close, 1),
            _ => (Kind::Sign, c.len_utf8()),
        };
        all.push((kind, &rest[..length], at + length));
        at += length;
    }
    all
}

fn of_lists(filter: &str) -> bool {
    OF_LISTS.split(' ').any(|name| name == filter)
}

/// What encloses an operand.
#[derive(Clone, Copy, Default)]
struct Enclosure {
    /// Arguments that may become text.
    texts: bool,
    /// Arguments of a test, or of a filter that makes text: what comes of them is no list.
    single: bool,
    /// After `~`, whose right side becomes text.
    joined: bool,
}

/// The inside of a tag, with a filter after each operand that may become text: both sides of `~`, what goes into
/// filters that want texts, arguments of filters and methods, and what is looked for.
fn texts_measured(inner: &str) -> Cow<'_, str> {
    let all = tokens(inner);
    let word = |at: Option<usize>| at.and_then(|at| all.get(at)).map_or("", |token| token.1);
    let (mut out, mut copied) = (String::new(), 0);
    let mut within = vec![Enclosure::default()];
    // Where the operand before a token ends, if it may be a list; whether what it names wants texts, and makes no list.
    let (mut operand, mut texts, mut single) = (None, false, false);
    // Targets of a loop come before its `in`.
    let mut targets = all.iter().find(|token| token.0 == Kind::Word).is_some_and(|token| token.1 == "for");
    for (i, &(kind, text, end)) in all.iter().enumerate() {
        let (last, before) = (word(i.checked_sub(1)), word(i.checked_sub(2)));
        let here = within.last().copied().unwrap_or_default();
        let goes_on = matches!((kind, text), (Kind::Sign, "." | "|") | (Kind::Open, "(" | "["));
        if let Some(at) = operand {
            let inside = here.texts || here.joined;
            let becomes_text = match (kind, text) {
                (Kind::Sign, "|") => {
                    let of_texts =
                        word(Some(i + 1)) == "map" && all.get(i + 3).is_some_and(|t| t.0 == Kind::Literal);
                    of_texts || !of_lists(word(Some(i + 1)))
                }
                (Kind::Sign, "~") => true,
                (Kind::Word, "in" | "not") => !targets,
                _ => inside && !goes_on,
            };
            if becomes_text {
                out.push_str(&inner[copied..at]);
                out.push('|');
                out.push_str(MEASURED);
                copied = at;
            }
        }
        let after_operand = i.checked_sub(1).is_some_and(|i| !matches!(all[i].0, Kind::Sign | Kind::Open));
        if let (Some(here), true) = (within.last_mut(), after_operand && !goes_on) {
            here.joined = false;
        }
        match kind {
            Kind::Word => {
                single = last == "is" || last == "not" && before == "is";
                targets &= text != "in";
                let named = KEYWORDS.contains(&text) && last != ".";
                single |= last == "|" && !of_lists(text);
                operand = (!named && !single).then_some(end);
                texts = last == "|" || last == "." || OF_TEXTS.contains(&text);
            }
            Kind::Literal => operand = None,
            Kind::Open => {
                let call = text == "(" && (operand.is_some() || single);
                within.push(Enclosure { texts: call && texts, single: call && single, joined: false });
                (operand, texts, single) = (None, false, false);
            }
            Kind::Close => {
                let closed = if within.len() > 1 { within.pop().unwrap_or_default() } else { here };
                operand = (!closed.single).then_some(end);
                (texts, single) = (false, false);
            }
            Kind::Sign => {
                operand = None;
                if let (Some(here), "~") = (within.last_mut(), text) {
                    here.joined = true;
                }
            }
        }
    }
    if let (Some(at), true) = (operand, within.iter().any(|here| here.joined)) {
        out.push_str(&inner[copied..at]);
        out.push('|');
        out.push_str(MEASURED);
        copied = at;
    }
    if copied == 0 {
        return Cow::Borrowed(inner);
    }
    out.push_str(&inner[copied..]);
    out.into()
}

/// A value for a variable, refused if it is nested too deep: the engine goes down into values without a
/// limit, when it writes, compares or drops them, and only variables can grow without end. As an
/// attribute it must hold no namespace, since one that holds itself has no end at all.
fn bounded(state: &State, value: Value, attribute: bool) -> Checked<Value> {
    let namespace = minijinja::functions::namespace(None)?;
    let namespace = namespace.as_object().map_or("", |object| object.type_name());
    let value = kept(state, value)?;
    walk(state, &value, |value| match value.as_object() {
        Some(object) if attribute && object.type_name() == namespace => {
            let message = "a namespace can't hold another one in this engine";
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        }
        _ => Ok(()),
    })?;
    Ok(value)
}

/// A value that may become text; if it is a list or a map, what that takes is paid for before.
fn measured(state: &State, value: Value) -> Checked<Value> {
    if value.as_object().is_none() {
        return Ok(value);
    }
    let value = kept(state, value)?;
    walk(state, &value, |value| {
        let length = value.as_str().map_or(0, str::len);
        state.consume_fuel((length / BYTES_PER_FUEL) as u64)
    })?;
    Ok(value)
}

/// Lists that are made while they are read may be read only once.
fn kept(state: &State, value: Value) -> Checked<Value> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let items = value.try_iter()?.map(|item| state.consume_fuel(1).map(|()| item));
    Ok(Value::from(items.collect::<Checked<Vec<_>>>()?))
}

/// Looks at a value and at all that it holds, and pays for each; an error if it is nested too deep.
fn walk(state: &State, value: &Value, look: impl Fn(&Value) -> Checked<()>) -> Checked<()> {
    look(value)?;
    let mut level = vec![value.clone()];
    for _ in 0..MAX_DEPTH {
        let mut next = Vec::new();
        for value in level {
            if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
                continue;
            }
            for item in value.try_iter()? {
                state.consume_fuel(1)?;
                let item = if value.kind() == ValueKind::Map {
                    look(&item)?;
                    value.get_item(&item)?
                } else {
                    item
                };
                look(&item)?;
                if item.as_object().is_some() {
                    next.push(item);
                }
            }
        }
        if next.is_empty() {
            return Ok(());
        }
        level = next;
    }
    let message = format!("a value is nested more than {MAX_DEPTH} deep");
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_conditions() {
        assert_eq!(
            prepared("a{%- generation -%}b{% endgeneration %}c{{ '{%' }}{% if x %}"),
            "a{%- if true -%}b{% endif %}c{{ '{%' }}{% if x %}"
        );
    }

    #[test]
    fn what_variables_hold_is_bounded() {
        assert_eq!(
            prepared("{%- set a = '%}' -%}{% set n.b=1, 2 %}{% set c %}{% set d = x == y -%}{% set"),
            "{%- set a =( '%}' )|wgllama_bounded -%}{% set n.b=(1, 2 )|wgllama_bounded_attribute %}{% set c %}\
             {% set d =( x == y )|wgllama_bounded -%}{% set"
        );
    }

    #[test]
    fn what_may_become_text_is_measured() {
        let measured = |source: &str| prepared(source).replace("|wgllama_measured", "!");
        for (source, expected) in [
            ("{{ a ~ b }}", "{{ a! ~ b! }}"),
            ("{{ 'x' ~ [a, b][0].c(d) ~ (-e) }}", "{{ 'x' ~ [a, b][0].c(d!)! ~ (-e)! }}"),
            ("{%- if a|upper in b -%}", "{%- if a!|upper in b -%}"),
            ("{{ a|length + b|join(c, d)|trim }}", "{{ a|length + b!|join(c!, d!)|trim }}"),
            (
                "{{ x.y('}}', {'k': {'l': z}})|map('upper')|list }}",
                "{{ x.y('}}', {'k': {'l': z}}!)!|map('upper')|list }}",
            ),
            (
                "{%- for a, (b, c) in d.items() %}{% macro m(a, b) %}",
                "{%- for a, (b, c) in d.items() %}{% macro m(a, b) %}",
            ),
            (
                "{{ raise_exception(a if b is none else c) }}",
                "{{ raise_exception(a! if b! is none else c!) }}",
            ),
            (
                "{{ a is not none and (b is divisibleby(c)) ~ d }}",
                "{{ a is not none and (b is divisibleby(c))! ~ d! }}",
            ),
            (
                "{% raw %}{{ a ~ b }}{% endraw %}{# a ~ b #}{{ a ~ b",
                "{% raw %}{{ a ~ b }}{% endraw %}{# a ~ b #}{{ a ~ b",
            ),
            (
                "{% raw %}endraw {{ a ~ b }} {%- endraw %}{{ a ~ b }}",
                "{% raw %}endraw {{ a ~ b }} {%- endraw %}{{ a! ~ b! }}",
            ),
            (
                "{% set x = a ~ b %}{% set y | f %}",
                "{% set x =( a! ~ b! )|wgllama_bounded %}{% set y! | f %}",
            ),
        ] {
            assert_eq!(measured(source), expected, "{source}");
        }
    }
}
