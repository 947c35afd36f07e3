//! The unit of work: a ragged batch of tokens of one or several sequences.

use crate::error::{Error, Result};

/// One token of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Vocabulary id.
    pub id: u32,
    /// Position in its sequence, from 0.
    pub position: u32,
    /// Sequence slot.
    pub sequence: u32,
}

/// Tokens in the order of their positions, and those whose logits are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// Places in `tokens`.
    pub outputs: Vec<u32>,
}

impl Batch {
    /// `ids` of one sequence from position `start` on, with the logits of the last.
    pub fn sequence(ids: &[u32], start: usize, sequence: u32) -> Self {
        let tokens = ids
            .iter()
            .enumerate()
            .map(|(i, &id)| Token { id, position: (start + i) as u32, sequence })
            .collect();
        Self { tokens, outputs: ids.len().checked_sub(1).map(|i| i as u32).into_iter().collect() }
    }

    /// The same batch with the logits of every token.
    #[must_use]
    pub fn with_all_outputs(mut self) -> Self {
        self.outputs = (0..self.tokens.len() as u32).collect();
        self
    }

    /// Positions that the sequences have with this batch, all together.
    pub fn positions(&self) -> usize {
        let last = |i: usize, t: &Token| !self.tokens[i + 1..].iter().any(|u| u.sequence == t.sequence);
        let ends = self.tokens.iter().enumerate().filter(|(i, t)| last(*i, t));
        ends.map(|(_, t)| t.position as usize + 1).sum()
    }

    /// Refuses ids that are not below `vocab`, positions not below `positions`, sequences not
    /// below `sequences`, and outputs that are no tokens: kernels index by them.
    pub fn check(&self, vocab: usize, positions: usize, sequences: usize) -> Result<()> {
        let refuse = |what: &str, found: u32, limit: usize| {
            Err(Error::shape("batch", format!("{what} {found} is not below {limit}")))
        };
        for token in &self.tokens {
            let fields = [
                ("id", token.id, vocab),
                ("position", token.position, positions),
                ("sequence", token.sequence, sequences),
            ];
            for (what, found, limit) in fields {
                if found as usize >= limit {
                    return refuse(what, found, limit);
                }
            }
        }
        match self.outputs.iter().find(|o| **o as usize >= self.tokens.len()) {
            Some(output) => refuse("output", *output, self.tokens.len()),
            None => Ok(()),
        }
    }
}
