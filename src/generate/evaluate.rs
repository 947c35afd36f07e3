//! How well a model predicts a text, and how near its logits are to others.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::generate::Session;

/// How a text is cut into windows that are evaluated one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// All of it at once: every token but the first is predicted from all before it.
    One,
    /// Windows of so many tokens side by side, of which the second halves count, as in llama.cpp's
    /// `perplexity`; what is left over at the end does not. Each begins with the token that the
    /// model wants first, in the place of the window's own, where it wants one.
    Halves(usize),
    /// Windows of `size` tokens that move by `stride`: every token but the first counts once, in
    /// the first window that holds it.
    Sliding {
        /// Tokens of a window.
        size: usize,
        /// Tokens from one window to the next, at most `size`.
        stride: usize,
    },
}

/// A window, and the tokens in it that count: at least the second, since the first has nothing
/// before it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    tokens: Range<usize>,
    counted: usize,
}

impl Windows {
    /// Tokens that a context must hold for a text of `len` tokens.
    pub fn context(self, len: usize) -> usize {
        match self {
            Self::One => len,
            Self::Halves(size) | Self::Sliding { size, .. } => size,
        }
    }

    fn cut(self, len: usize) -> Result<Vec<Window>> {
        let few = |need: usize| {
            Err(Error::option("file", format!("expected {need} or more tokens of text, found {len}")))
        };
        match self {
            Self::One if len < 2 => few(2),
            Self::One => Ok(vec![Window { tokens: 0..len, counted: 1 }]),
            Self::Halves(size) if size < 4 => {
                Err(Error::option("ctx", format!("expected windows of 4 or more tokens, found {size}")))
            }
            Self::Halves(size) if len < size => few(size),
            Self::Halves(size) => Ok((0..len / size)
                .map(|i| Window { tokens: i * size..(i + 1) * size, counted: size / 2 + 1 })
                .collect()),
            Self::Sliding { size, stride } if size < 2 || stride == 0 || stride > size => {
                let message = format!("expected 1 to the window's {size} tokens, found {stride}");
                Err(Error::option("stride", message))
            }
            Self::Sliding { .. } if len < 2 => few(2),
            Self::Sliding { size, stride } => {
                let mut all = vec![Window { tokens: 0..size.min(len), counted: 1 }];
                while let Some(end) = all.last().map(|w| w.tokens.end).filter(|end| *end < len) {
                    let next = (end + stride).min(len);
                    // With a stride of the whole window the first token has nothing before it.
                    let start = next.saturating_sub(size);
                    all.push(Window { tokens: start..next, counted: (end - start).max(1) });
                }
                Ok(all)
            }
        }
    }
}

/// What was found so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Perplexity {
    /// Windows done, of how many.
    pub windows: (usize, usize),
    /// Tokens that counted.
    pub tokens: usize,
    /// Sum of the negative logarithms of their probabilities, natural.
    pub loss: f64,
    squares: f64,
}

impl Perplexity {
    /// The exponential of the mean loss.
    pub fn value(&self) -> f64 {
        (self.loss / self.tokens as f64).exp()
    }

    /// Standard error of [`value`](Self::value), taking the tokens' losses as independent.
    pub fn error(&self) -> f64 {
        let n = self.tokens as f64;
        let mean = self.loss / n;
        let variance = (self.squares / n - mean * mean).max(0.0);
        self.value() * (variance / (n - 1.0).max(1.0)).sqrt()
    }

    fn add(&mut self, loss: f64) {
        self.tokens += 1;
        self.loss += loss;
        self.squares += loss * loss;
    }
}

/// How far logits are from those of a reference.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Divergence {
    /// Positions compared.
    pub positions: usize,
    /// Sum of the Kullback-Leibler divergences of the distributions from the reference's, natural.
    pub kl: f64,
    /// Positions at which the likeliest token is the reference's.
    pub agreed: usize,
    /// Largest difference of two logits.
    pub largest: f32,
    /// Sum of the squares of all differences, and how many there are.
    squares: (f64, usize),
}

impl Divergence {
    /// The mean divergence of a position.
    pub fn mean(&self) -> f64 {
        self.kl / self.positions as f64
    }

    /// Root of the mean square of the differences of logits.
    pub fn rms(&self) -> f64 {
        (self.squares.0 / self.squares.1 as f64).sqrt()
    }

    /// The share of positions at which the likeliest token is the same.
    pub fn agreement(&self) -> f64 {
        self.agreed as f64 / self.positions as f64
    }

    fn add(&mut self, found: &[f32], reference: &[f32]) {
        let (ours, theirs) = (log_sum_exp(found), log_sum_exp(reference));
        let term = |(&f, &r): (&f32, &f32)| {
            let log = f64::from(r) - theirs;
            log.exp() * (log - (f64::from(f) - ours))
        };
        self.positions += 1;
        self.kl += found.iter().zip(reference).map(term).sum::<f64>();
        self.agreed += usize::from(likeliest(found) == likeliest(reference));
        let off = found.iter().zip(reference).map(|(f, r)| (f - r).abs()).fold(0.0, f32::max);
        self.largest = self.largest.max(off);
        let squares = found.iter().zip(reference).map(|(f, r)| f64::from(f - r).powi(2));
        self.squares.0 += squares.sum::<f64>();
        self.squares.1 += found.len();
    }
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

/// The logarithm of the sum of the exponentials.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - top).exp()).sum();
    f64::from(top) + sum.ln()
}

impl Session {
    /// The perplexity of `ids`, which come without the token that begins a text; `first` is that
    /// token, where the model wants one. `progress` hears what was found after each window. The
    /// session is empty before and after.
    pub fn perplexity(
        &mut self,
        ids: &[u32],
        windows: Windows,
        first: Option<u32>,
        mut progress: impl FnMut(&Perplexity),
    ) -> Result<Perplexity> {
        let mut ids = ids.to_vec();
        if let Some(first) = first {
            ids.insert(0, first);
        }
        let all = windows.cut(ids.len())?;
        let mut found = Perplexity { windows: (0, all.len()), ..Perplexity::default() };
        for window in all {
            let mut tokens = ids[window.tokens.clone()].to_vec();
            if let (Windows::Halves(_), Some(first)) = (windows, first) {
                tokens[0] = first;
            }
            self.truncate(0);
            self.window(&tokens, window.counted, &mut found)?;
            found.windows.0 += 1;
            progress(&found);
        }
        self.truncate(0);
        Ok(found)
    }

    /// Adds the losses of the tokens of a window from `counted` on.
    fn window(&mut self, tokens: &[u32], counted: usize, found: &mut Perplexity) -> Result<()> {
        let vocab = self.model().config().vocab_size;
        // What comes before the first position that predicts needs no logits.
        let (before, predicting) = tokens[..tokens.len() - 1].split_at(counted - 1);
        if !before.is_empty() {
            self.prefill(before)?;
        }
        let mut at = counted;
        self.prefill_with(predicting, |logits| {
            for logits in logits.chunks_exact(vocab) {
                let loss = log_sum_exp(logits) - f64::from(logits[tokens[at] as usize]);
                if !loss.is_finite() {
                    return Err(Error::BadLogits { position: at - 1 });
                }
                found.add(loss);
                at += 1;
            }
            Ok(())
        })
    }

    /// How far the logits at every position of `ids` are from `reference`, `[ids, vocab]`.
    pub fn divergence(&mut self, ids: &[u32], reference: &[f32]) -> Result<Divergence> {
        let vocab = self.model().config().vocab_size;
        if reference.len() != ids.len() * vocab {
            let message = format!(
                "expected logits of {} ids by a vocabulary of {vocab}, found {} values",
                ids.len(),
                reference.len()
            );
            return Err(Error::shape("reference", message));
        }
        let mut found = Divergence::default();
        let mut rows = reference.chunks_exact(vocab);
        self.truncate(0);
        self.prefill_with(ids, |logits| {
            for (logits, reference) in logits.chunks_exact(vocab).zip(&mut rows) {
                found.add(logits, reference);
            }
            Ok(())
        })?;
        self.truncate(0);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of each window, and the first that counts.
    fn cut(windows: Windows, len: usize) -> Vec<(usize, usize, usize)> {
        let all = windows.cut(len).unwrap();
        all.into_iter().map(|w| (w.tokens.start, w.tokens.end, w.tokens.start + w.counted)).collect()
    }

    #[test]
    fn halves_leave_the_rest_out() {
        assert_eq!(cut(Windows::Halves(8), 27), [(0, 8, 5), (8, 16, 13), (16, 24, 21)]);
    }

    #[test]
    fn sliding_windows_count_every_token_once() {
        let sliding = |size, stride| Windows::Sliding { size, stride };
        assert_eq!(cut(sliding(8, 4), 15), [(0, 8, 1), (4, 12, 8), (7, 15, 12)]);
        assert_eq!(cut(sliding(8, 8), 17), [(0, 8, 1), (8, 16, 9), (9, 17, 16)]);
        assert_eq!(cut(sliding(8, 3), 5), [(0, 5, 1)]);
        assert_eq!(cut(Windows::One, 5), [(0, 5, 1)]);
    }

    #[test]
    fn what_makes_no_window_is_an_error() {
        let bad = [
            (Windows::One, 1),
            (Windows::Halves(8), 7),
            (Windows::Halves(3), 9),
            (Windows::Sliding { size: 8, stride: 0 }, 20),
            (Windows::Sliding { size: 8, stride: 9 }, 20),
            (Windows::Sliding { size: 8, stride: 8 }, 1),
        ];
        for (windows, len) in bad {
            assert!(matches!(windows.cut(len), Err(Error::InvalidOption { .. })), "{windows:?} {len}");
        }
    }

    #[test]
    fn figures_of_known_losses() {
        let mut found = Perplexity::default();
        [1.0, 3.0].into_iter().for_each(|loss| found.add(loss));
        assert!((found.value() - 2f64.exp()).abs() < 1e-12);
        assert!((found.error() - 2f64.exp()).abs() < 1e-12);
        let mut same = Divergence::default();
        same.add(&[1.0, 2.0, 0.5], &[3.0, 4.0, 2.5]);
        assert!(same.mean().abs() < 1e-12 && same.agreement() == 1.0 && same.largest == 2.0);
        assert_eq!(same.rms(), 2.0);
        let mut other = Divergence::default();
        other.add(&[0.0, 0.0], &[0.0, 3f32.ln()]);
        // 1/4 ln(1/2) + 3/4 ln(3/2)
        assert!((other.mean() - 0.130812).abs() < 1e-6 && other.agreed == 1);
    }
}
