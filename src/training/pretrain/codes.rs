//! How labels are distributed: what a predictor that knows only that could reach, and whether the codebooks
//! collapsed.

use std::collections::HashMap;

use tch::{TchError, Tensor};

/// Counts of each codebook's labels.
#[derive(Clone, Debug, Default)]
pub struct CodeCounts {
    books: Vec<HashMap<i64, u64>>,
    frames: u64,
}

/// What the counts say; each the mean over codebooks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CodeStatistics {
    /// Entropy of the labels, nats: no predictor that looks at nothing but how frequent a label is *in this
    /// very set* has a lower cross-entropy.
    pub entropy: f64,
    /// Share of the most frequent label: the accuracy of always guessing it.
    pub majority: f64,
    /// Share of a codebook's codes that occur at all.
    pub used: f64,
    /// `exp(entropy)`: as many codes, equally frequent, would be as surprising.
    pub perplexity: f64,
}

impl CodeCounts {
    /// Counts more labels, i64 `[N, K]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn add(&mut self, codes: &Tensor) -> Result<(), TchError> {
        let (frames, books) = codes.size2()?;
        self.books
            .resize_with(usize::try_from(books).unwrap_or(0), HashMap::new);
        self.frames += frames.unsigned_abs();
        for (at, book) in self.books.iter_mut().enumerate() {
            for code in Vec::<i64>::try_from(codes.f_select(1, at as i64)?.f_contiguous()?)? {
                *book.entry(code).or_default() += 1;
            }
        }
        Ok(())
    }

    /// What they say, for codebooks of `codes` codes.
    #[expect(clippy::cast_precision_loss, reason = "counts")]
    pub fn statistics(&self, codes: i64) -> CodeStatistics {
        let mut mean = CodeStatistics::default();
        if self.frames == 0 || self.books.is_empty() {
            return mean;
        }
        let (frames, books) = (self.frames as f64, self.books.len() as f64);
        for book in &self.books {
            let shares = || book.values().map(|count| *count as f64 / frames);
            let entropy: f64 = shares().map(|share| -share * share.ln()).sum();
            mean.entropy += entropy / books;
            mean.perplexity += entropy.exp() / books;
            mean.majority += shares().fold(0.0, f64::max) / books;
            mean.used += book.len() as f64 / codes as f64 / books;
        }
        mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equally_frequent_codes_have_the_entropy_of_their_number() {
        let mut counts = CodeCounts::default();
        counts
            .add(&Tensor::from_slice(&[0i64, 5, 1, 5, 2, 5, 3, 5]).view([4, 2]))
            .unwrap();

        let found = counts.statistics(8);

        // The first book holds four codes once each, the second one code four times.
        assert!((found.entropy - 4f64.ln() / 2.0).abs() < 1e-12);
        assert!((found.perplexity - 2.5).abs() < 1e-12);
        assert!((found.majority - 0.625).abs() < 1e-12);
        assert!((found.used - (4.0 + 1.0) / 16.0).abs() < 1e-12);
    }

    #[test]
    fn nothing_counted_says_nothing() {
        assert_eq!(CodeCounts::default().statistics(8), CodeStatistics::default());
    }
}
