//! Decoding ids that come one by one, as they do while a model generates. Owns which text is
//! final, and what bytes that are no text become; all else about text is `Tokenizer::decode`'s.

use super::Tokenizer;
use crate::Result;

/// Bytes of an unfinished character appear as at most this many U+FFFD.
const MAX_UNFINISHED: usize = 3;
/// Ids in the window before its front is cut. A window gets that long only while a model
/// writes bytes that are no text.
const MAX_WINDOW: usize = 48;
/// Ids that stay after that cut; more than the bytes of any character, so that the cut can't
/// change how the end of the window decodes.
const KEPT_WINDOW: usize = 16;

/// Turns ids into text as they come; made by [`Tokenizer::stream`].
///
/// All pieces and what [`finish`](Self::finish) gives, joined, are the text that
/// [`Tokenizer::decode`] gives for all ids with special tokens skipped.
pub struct DecodeStream {
    tokenizer: Tokenizer,
    /// The latest ids. How a token decodes depends on what stands before it (a leading space,
    /// a character's first bytes), so some ids stay although their text is out.
    window: Vec<u32>,
    /// Ids at the front of the window whose text was out when the window was last whole.
    settled: usize,
    /// Bytes of the window's text that are out.
    emitted: usize,
}

impl DecodeStream {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, window: Vec::new(), settled: 0, emitted: 0 }
    }

    /// Takes the next id; gives the text that it completes, in whole characters.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        // Decoding passes over such an id, so it must not take a place in the window: a window
        // of nothing but those would lose the leading space of the next token.
        if self.tokenizer.visible_token(id, true).is_none() {
            return Ok(None);
        }
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, true)?;
        let final_len = final_len(&text);
        let piece = text.get(self.emitted..final_len).unwrap_or_default().to_string();
        self.emitted = self.emitted.max(final_len);
        if final_len == text.len() && !piece.is_empty() {
            // Everything is out: from here on, what came with this piece is context enough.
            self.window.drain(..self.settled);
            self.settled = self.window.len();
            self.emitted = self.tokenizer.decode(&self.window, true)?.len();
        } else if self.window.len() > MAX_WINDOW {
            let held = text.len().saturating_sub(self.emitted);
            self.window.drain(..self.window.len() - KEPT_WINDOW);
            self.settled = 0;
            self.emitted = self.tokenizer.decode(&self.window, true)?.len().saturating_sub(held);
        }
        Ok(Some(piece).filter(|p| !p.is_empty()))
    }

    /// Ends the text: gives what was held back because more bytes might have come. The stream
    /// then begins anew.
    pub fn finish(&mut self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.window, true)?;
        let rest = text.get(self.emitted..).unwrap_or_default().to_string();
        self.window.clear();
        self.settled = 0;
        self.emitted = 0;
        Ok(Some(rest).filter(|r| !r.is_empty()))
    }
}

/// Bytes of `text` that further tokens can't change: all but the U+FFFD at its end, which may
/// stand for the first bytes of a character. More of them than a character has bytes are final.
fn final_len(text: &str) -> usize {
    let mut rest = text;
    for _ in 0..MAX_UNFINISHED {
        match rest.strip_suffix(char::REPLACEMENT_CHARACTER) {
            Some(shorter) => rest = shorter,
            None => break,
        }
    }
    rest.len()
}

/// Replaces byte tokens that are no part of a UTF-8 character by U+FFFD.
///
/// The crate's decoder gives up a whole run of byte tokens for one bad byte in it. Then a text
/// that has been streamed would change afterwards, and a stray byte would swallow good text.
pub(super) fn replace_stray_bytes(mut tokens: Vec<String>) -> Vec<String> {
    let bytes: Vec<Option<u8>> = tokens.iter().map(|t| byte_of(t)).collect();
    let mut start = 0;
    for run in bytes.chunk_by(|a, b| a.is_some() == b.is_some()) {
        let run_bytes: Vec<u8> = run.iter().copied().flatten().collect();
        let mut at = start;
        for chunk in run_bytes.utf8_chunks() {
            at += chunk.valid().len();
            for token in tokens.iter_mut().skip(at).take(chunk.invalid().len()) {
                *token = char::REPLACEMENT_CHARACTER.to_string();
            }
            at += chunk.invalid().len();
        }
        start += run.len();
    }
    tokens
}

/// The byte of a token of the form `<0x0A>`.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { u8::from_str_radix(digits, 16).ok() } else { None }
}
