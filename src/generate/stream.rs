//! A stream of generated pieces of text: whole characters only, as soon as they are known.

use std::ops::ControlFlow;

use crate::error::Result;
use crate::generate::{Sampling, Session};
use crate::tokenizer::DecodeStream;

/// A generated token and the text that it completes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The token; none for what is left of a character that the text breaks off in.
    pub id: Option<u32>,
    /// Text that became complete with it; empty inside of a character.
    pub text: String,
}

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its text.
    End,
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
}

/// Iterator over generated pieces.
pub struct TokenStream<'a> {
    session: &'a mut Session,
    max_tokens: usize,
    ignore_eos: bool,
    text: Option<DecodeStream>,
    /// The last token: part of the sequence only if another is wanted after it.
    pending: Option<u32>,
    count: usize,
    finish: Option<Finish>,
    failed: bool,
}

impl<'a> TokenStream<'a> {
    /// Streams what the session has begun to generate.
    pub(super) fn new(session: &'a mut Session, sampling: &Sampling) -> Self {
        let text = session.model().tokenizer().ok().map(|t| t.stream());
        let Sampling { max_tokens, ignore_eos, .. } = *sampling;
        Self { session, max_tokens, ignore_eos, text, pending: None, count: 0, finish: None, failed: false }
    }

    /// Why the stream ended; none while it goes on, and after an error.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    fn advance(&mut self) -> Result<Option<Piece>> {
        if self.finish.is_some() {
            return Ok(None);
        }
        match self.choose()? {
            ControlFlow::Continue(id) => {
                self.count += 1;
                self.pending = Some(id);
                let text = self.text.as_mut().map(|t| t.push(id)).transpose()?.flatten();
                Ok(Some(Piece { id: Some(id), text: text.unwrap_or_default() }))
            }
            ControlFlow::Break(finish) => {
                self.finish = Some(finish);
                let rest = self.text.as_mut().map(|t| t.finish()).transpose()?.flatten();
                Ok(rest.map(|text| Piece { id: None, text }))
            }
        }
    }

    /// The next token, or why there is none.
    fn choose(&mut self) -> Result<ControlFlow<Finish, u32>> {
        if self.count == self.max_tokens {
            return Ok(ControlFlow::Break(Finish::Length));
        }
        // Every step under way gives a token.
        let left = self.max_tokens - self.count - self.session.under_way();
        self.session.run_ahead(left, &mut self.pending)?;
        if self.session.under_way() == 0 {
            return Ok(ControlFlow::Break(Finish::Context));
        }
        if let Some(pending) = self.pending.take() {
            self.session.accept(pending);
        }
        let id = self.session.chosen()?;
        let end = !self.ignore_eos && self.session.model().tokenizer().is_ok_and(|t| t.is_end(id));
        Ok(if end { ControlFlow::Break(Finish::End) } else { ControlFlow::Continue(id) })
    }
}

impl Drop for TokenStream<'_> {
    fn drop(&mut self) {
        self.session.settle();
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = if self.failed { Ok(None) } else { self.advance() };
        self.failed |= piece.is_err();
        piece.transpose()
    }
}
