//! A stream of generated pieces of text: whole characters only, as soon as they are known.

use crate::error::Result;
use crate::generate::{Sampler, Session};
use crate::tokenizer::DecodeStream;

/// A generated token and the text that it completes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The token.
    pub id: u32,
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
    sampler: Sampler,
    text: Option<DecodeStream>,
    last: Option<u32>,
    count: usize,
    finish: Option<Finish>,
}

impl<'a> TokenStream<'a> {
    pub(super) fn new(session: &'a mut Session, sampler: Sampler) -> Result<Self> {
        let text = session.model().tokenizer().ok().map(|t| t.stream());
        Ok(Self { session, sampler, text, last: None, count: 0, finish: None })
    }

    /// Why the stream ended; none while it goes on.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    fn advance(&mut self) -> Result<Option<Piece>> {
        if self.finish.is_some() {
            return Ok(None);
        }
        // A token is fed only when another one is wanted after it.
        if let Some(last) = self.last {
            if self.session.ids().len() == self.session.capacity() {
                return self.end(Finish::Context);
            }
            self.session.prefill(&[last])?;
        }
        if self.count == self.sampler.options().max_tokens {
            return self.end(Finish::Length);
        }
        let id = self.sampler.sample(self.session.logits()?)?;
        if self.session.model().tokenizer().is_ok_and(|t| t.is_end(id)) {
            return self.end(Finish::End);
        }
        self.count += 1;
        self.last = (self.count < self.sampler.options().max_tokens).then_some(id);
        let text = match &mut self.text {
            Some(stream) => stream.push(id)?.unwrap_or_default(),
            None => String::new(),
        };
        if self.last.is_none() {
            self.finish = Some(Finish::Length);
            let rest = self.rest()?;
            return Ok(Some(Piece { id, text: text + &rest }));
        }
        Ok(Some(Piece { id, text }))
    }

    /// Text that waits for the rest of a character which will not come.
    fn rest(&mut self) -> Result<String> {
        Ok(match self.text.take() {
            Some(mut stream) => stream.finish()?.unwrap_or_default(),
            None => String::new(),
        })
    }

    fn end(&mut self, finish: Finish) -> Result<Option<Piece>> {
        self.finish = Some(finish);
        let text = self.rest()?;
        Ok(match self.last.filter(|_| !text.is_empty()) {
            Some(id) => Some(Piece { id, text }),
            None => None,
        })
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.advance();
        if piece.is_err() {
            self.finish = Some(Finish::End);
        }
        piece.transpose()
    }
}
