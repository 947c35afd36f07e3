//! The unit of work: a ragged batch of tokens of one or several sequences.

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
}
