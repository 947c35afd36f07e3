//! How text is cut into words before BPE: the crate's pre-tokenizers, with a bound on the work of regular
//! expressions. The crate's own go back and forth up to a million times at every character, and end a
//! text in silence where they stop.

use std::path::Path;

use fancy_regex::{Regex, RegexBuilder};
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::tokenizer::pattern::Invert;
use tokenizers::{PreTokenizedString, PreTokenizer, PreTokenizerWrapper};

use super::error;
use crate::Result;

/// Times that an expression may go back while it looks for one match. Those of known tokenizers do so a
/// few times; a run of a hundred thousand digits can take some a third of this.
const MAX_BACKTRACKS: usize = 50_000;

/// A pre-tokenizer.
#[derive(Clone)]
pub(super) enum Words {
    Split { pattern: Regex, behavior: SplitDelimiterBehavior, invert: bool },
    Sequence(Vec<Words>),
    Other(PreTokenizerWrapper),
}

impl Words {
    /// The same as `pre_tokenizer`; `path` is the file that it comes from.
    pub(super) fn new(path: &Path, pre_tokenizer: &PreTokenizerWrapper) -> Result<Self> {
        Ok(match pre_tokenizer {
            PreTokenizerWrapper::Sequence(list) => {
                Self::Sequence(list.as_ref().iter().map(|one| Self::new(path, one)).collect::<Result<_>>()?)
            }
            PreTokenizerWrapper::Split(split) => match &split.pattern {
                SplitPattern::Regex(text) => {
                    let pattern = RegexBuilder::new(text).backtrack_limit(MAX_BACKTRACKS).build();
                    let pattern = pattern.map_err(|e| error(path, format!("pre-tokenizer: {e}")))?;
                    Self::Split { pattern, behavior: split.behavior, invert: split.invert }
                }
                SplitPattern::String(_) => Self::Other(pre_tokenizer.clone()),
            },
            other => Self::Other(other.clone()),
        })
    }
}

impl PreTokenizer for Words {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Self::Split { pattern, behavior, invert: false } => {
                text.split(|_, piece| piece.split(pattern, *behavior))
            }
            Self::Split { pattern, behavior, invert: true } => {
                text.split(|_, piece| piece.split(Invert(pattern), *behavior))
            }
            Self::Sequence(list) => list.iter().try_for_each(|one| one.pre_tokenize(text)),
            Self::Other(other) => other.pre_tokenize(text),
        }
    }
}
