//! What language models have in common: checks of what they are given, and the lookup of embeddings.

use tch::Tensor;

use crate::models::ModelError;

/// One row of something per sequence.
pub(super) fn check_rows(what: &'static str, found: usize, rows: i64) -> Result<(), ModelError> {
    if found as i64 == rows {
        return Ok(());
    }
    Err(ModelError::Shape {
        what,
        expected: format!("[{rows}]"),
        found: vec![found as i64],
    })
}

/// One answer per prompt, none of them empty, and prompts of `width`.
pub(super) fn check_batch(prompts: &[Tensor], answers: &[&[i64]], width: i64) -> Result<(), ModelError> {
    let paired = !prompts.is_empty() && prompts.len() == answers.len();
    if !paired || answers.iter().any(|answer| answer.is_empty()) {
        return Err(ModelError::Shape {
            what: "a batch of prompts and answers",
            expected: "as many answers as prompts, none empty".into(),
            found: vec![prompts.len() as i64, answers.len() as i64],
        });
    }
    for prompt in prompts {
        let size = prompt.size();
        if !matches!(size.as_slice(), [positions, found] if *positions > 0 && *found == width) {
            return Err(ModelError::Shape {
                what: "a prompt",
                expected: format!("[P, {width}]"),
                found: size,
            });
        }
    }
    Ok(())
}

/// Checks a right-padded batch `[B, P, width]` against its `lengths`; returns `(B, P)`.
pub(super) fn check_padded(
    embeds: &Tensor,
    lengths: &[i64],
    width: i64,
    positions_max: i64,
) -> Result<(i64, i64), ModelError> {
    let size = embeds.size();
    let (batch, positions) = match size.as_slice() {
        [batch, positions, found] if *batch == lengths.len() as i64 && *found == width => {
            (*batch, *positions)
        }
        _ => {
            return Err(ModelError::Shape {
                what: "`embeds`",
                expected: format!("[{}, P, {width}]", lengths.len()),
                found: size,
            });
        }
    };
    if batch == 0 {
        return Err(ModelError::EmptyBatch);
    }
    if lengths.iter().any(|length| *length < 1 || *length > positions) {
        return Err(ModelError::Shape {
            what: "`lengths`",
            expected: format!("1 to {positions} each"),
            found: lengths.to_vec(),
        });
    }
    if positions > positions_max {
        return Err(ModelError::TooManyPositions {
            positions,
            positions_max,
        });
    }
    Ok((batch, positions))
}

/// Rows of the embedding table `[V, H]`: `[L]` → `[L, H]`.
///
/// # Errors
/// [`ModelError::TokenOutOfRange`] when an id is outside the vocabulary.
pub(super) fn embed(table: &Tensor, ids: &[i64]) -> Result<Tensor, ModelError> {
    let vocabulary = table.size()[0];
    if let Some(id) = ids.iter().find(|id| !(0..vocabulary).contains(*id)) {
        return Err(ModelError::TokenOutOfRange { id: *id, vocabulary });
    }
    let index = Tensor::from_slice(ids).to_device(table.device());
    Ok(table.index_select(0, &index))
}
