//! Copies planned tensors from a source file into a `model.safetensors`, piece by piece.
//!
//! A plan says where each tensor lies in the source, how it is stored there, and in which order its rows
//! leave. Memory stays at a few megabytes per thread whatever the size of the model: every thread takes the
//! next piece, reads it, decodes it, and writes it at the place that the header, written first, has given it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use half::{f16, slice::HalfFloatSliceExt};
use serde_json::json;

use super::quants::Encoding;
use super::{FloatFormat, ImportError};

/// Numbers per piece, unless a block or a row is longer: 1 MiB of `f32`.
const PIECE_ELEMENTS: u64 = 1 << 18;
/// Longest row that is read at once, values. Real ones have a few thousand.
const ROW_ELEMENTS_MAX: u64 = 1 << 24;

/// In which order a tensor's rows leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As they are stored.
    AsStored,
    /// Each run of `head_rows` rows holds the two rotary halves interleaved; they leave one half after the
    /// other.
    SplitHalves {
        /// Rows per attention head; even.
        head_rows: u64,
    },
}

/// Scales of an integer tensor: a value is `stored / scale`.
#[derive(Clone, Debug)]
pub(crate) enum Scales {
    /// One for all.
    Whole(f32),
    /// One per row, and where in it this plan's first row is.
    PerRow(Arc<[f32]>, usize),
}

/// One tensor of the checkpoint to be written, and where its values come from.
#[derive(Clone, Debug)]
pub(crate) struct TensorPlan {
    /// Name in the checkpoint.
    pub(crate) name: String,
    /// Shape in the checkpoint, outermost first.
    pub(crate) shape: Vec<u64>,
    /// How it is stored in the source.
    pub(crate) encoding: Encoding,
    /// Where it starts, bytes from the start of the source.
    pub(crate) offset: u64,
    /// The order of its rows.
    pub(crate) order: RowOrder,
    /// Scales of `I8` and `I16`.
    pub(crate) scales: Option<Scales>,
}

impl TensorPlan {
    /// Numbers in the tensor. The shape was checked against the file's size when it was planned.
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Numbers per row: everything but the first dimension.
    fn row_elements(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }

    /// Decodes `count` values that start at value `from` of the *source* order.
    fn decode(
        &self,
        source: &Source<'_>,
        from: u64,
        buffers: &mut Buffers,
        count: u64,
        into: usize,
    ) -> Result<(), ImportError> {
        let bytes = self.encoding.bytes_for(count).expect("pieces are whole blocks") as usize;
        let start = self.encoding.bytes_for(from).expect("pieces start at a block");
        buffers.input.resize(bytes, 0);
        source
            .file
            .read_exact_at(&mut buffers.input, self.offset + start)
            .map_err(ImportError::io("read", source.path))?;
        let output = &mut buffers.values[into..into + count as usize];
        self.encoding.decode(&buffers.input, output);
        match &self.scales {
            None => {}
            Some(Scales::Whole(scale)) => output.iter_mut().for_each(|value| *value /= scale),
            Some(Scales::PerRow(scales, first)) => {
                let columns = self.row_elements();
                for (index, value) in output.iter_mut().enumerate() {
                    *value /= scales[first + ((from + index as u64) / columns) as usize];
                }
            }
        }
        Ok(())
    }
}

/// A run of a tensor's values, in the order in which they leave.
struct Piece {
    tensor: usize,
    from: u64,
    count: u64,
}

#[derive(Default)]
struct Buffers {
    input: Vec<u8>,
    values: Vec<f32>,
    output: Vec<u8>,
    halves: Vec<f16>,
}

struct Source<'a> {
    file: &'a File,
    path: &'a Path,
}

/// Cuts every tensor into pieces of whole blocks (whole rows where rows change places).
fn pieces(plans: &[TensorPlan]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (tensor, plan) in plans.iter().enumerate() {
        let elements = plan.elements();
        let step = match plan.order {
            RowOrder::AsStored => PIECE_ELEMENTS, // a multiple of every block size
            RowOrder::SplitHalves { .. } => {
                let row = plan.row_elements().max(1);
                (PIECE_ELEMENTS / row).max(1) * row
            }
        };
        let mut from = 0;
        while from < elements {
            let count = step.min(elements - from);
            pieces.push(Piece { tensor, from, count });
            from += count;
        }
    }
    pieces
}

/// Source row of row `row` of a tensor whose rotary halves are interleaved.
fn interleaved_row(row: u64, head_rows: u64) -> u64 {
    let (head, within) = (row / head_rows, row % head_rows);
    let half = head_rows / 2;
    head * head_rows + 2 * (within % half) + within / half
}

fn copy_piece(
    plan: &TensorPlan,
    piece: &Piece,
    source: &Source<'_>,
    buffers: &mut Buffers,
    format: FloatFormat,
) -> Result<(), ImportError> {
    buffers.values.resize(piece.count as usize, 0.0);
    match plan.order {
        RowOrder::AsStored => plan.decode(source, piece.from, buffers, piece.count, 0)?,
        RowOrder::SplitHalves { head_rows } => {
            let row_elements = plan.row_elements().max(1);
            let first = piece.from / row_elements;
            for row in 0..piece.count / row_elements {
                let stored = interleaved_row(first + row, head_rows);
                plan.decode(
                    source,
                    stored * row_elements,
                    buffers,
                    row_elements,
                    (row * row_elements) as usize,
                )?;
            }
        }
    }
    encode(buffers, format).map_err(|value| ImportError::Range {
        tensor: plan.name.clone(),
        value,
        format: format.name(),
        largest: format.largest(),
        advice: if value.is_finite() {
            "bf16 or f32"
        } else {
            "nothing: the file is damaged; get it again, do not import it"
        },
    })
}

/// Fills `buffers.output` from `buffers.values`; gives back the first value that the format cannot hold.
fn encode(buffers: &mut Buffers, format: FloatFormat) -> Result<(), f32> {
    let Buffers {
        values,
        output,
        halves,
        ..
    } = buffers;
    // What is at least half a step above the largest value would become infinite.
    let limit = format.overflow();
    let bad = |value: &&f32| !value.is_finite() || value.abs() >= limit;
    if let Some(&bad) = values.iter().find(bad) {
        return Err(bad);
    }
    output.resize(values.len() * format.bytes() as usize, 0);
    match format {
        FloatFormat::F32 => {
            for (bytes, value) in output.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
        FloatFormat::Bf16 => {
            for (bytes, value) in output.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                // Round to nearest, ties to even; the values are finite.
                let bits = value.to_bits();
                let rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
                *bytes = (rounded as u16).to_le_bytes();
            }
        }
        FloatFormat::F16 => {
            halves.resize(values.len(), f16::ZERO);
            halves.convert_from_f32_slice(values);
            for (bytes, half) in output.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
                *bytes = half.to_le_bytes();
            }
        }
    }
    Ok(())
}

/// Header of a safetensors file for these tensors: length, then JSON padded with spaces; byte for byte what
/// the `safetensors` library writes. `plans` must be sorted by name.
fn header(plans: &[TensorPlan], format: FloatFormat) -> (Vec<u8>, Vec<u64>) {
    let (mut text, mut offsets, mut end) = (
        String::from(r#"{"__metadata__":{"format":"pt"}"#),
        Vec::with_capacity(plans.len()),
        0,
    );
    for plan in plans {
        let start = end;
        end += plan.elements() * format.bytes();
        let (name, shape) = (json!(plan.name), json!(plan.shape));
        let dtype = format.safetensors_name();
        text.push_str(&format!(
            r#",{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#
        ));
        offsets.push(start);
    }
    text.push('}');
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    let data = bytes.len() as u64;
    offsets.iter_mut().for_each(|offset| *offset += data);
    (bytes, offsets)
}

/// Writes all `plans` as one safetensors file at `path` and gives back its length in bytes.
///
/// `progress` is called on the calling thread with how many values of how many are done.
///
/// # Errors
/// [`ImportError::Io`] when reading or writing fails; [`ImportError::Range`] when `format` cannot hold a
/// weight.
pub(crate) fn write_checkpoint(
    source_path: &Path,
    mut plans: Vec<TensorPlan>,
    format: FloatFormat,
    threads: usize,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<u64, ImportError> {
    plans.sort_by(|left, right| left.name.cmp(&right.name));
    if let Some(plan) = plans.iter().find(|plan| plan.row_elements() > ROW_ELEMENTS_MAX) {
        return Err(ImportError::Unsupported {
            path: source_path.to_path_buf(),
            what: format!(
                "tensor `{}` has rows of {} values; at most {ROW_ELEMENTS_MAX} are handled",
                plan.name,
                plan.row_elements()
            ),
        });
    }
    let source = File::open(source_path).map_err(ImportError::io("open", source_path))?;
    let source = Source {
        file: &source,
        path: source_path,
    };
    let output = File::create_new(path).map_err(ImportError::io("create", path))?;
    let (head, offsets) = header(&plans, format);
    let total = plans.iter().map(TensorPlan::elements).sum::<u64>();
    let length = head.len() as u64 + total * format.bytes();
    output
        .write_all_at(&head, 0)
        .map_err(ImportError::io("write", path))?;

    let pieces = pieces(&plans);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (report, reports) = mpsc::channel();
    let work = |report: &mpsc::Sender<Result<u64, ImportError>>| -> Result<(), ImportError> {
        let mut buffers = Buffers::default();
        while !failed.load(Ordering::Relaxed) {
            let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            let plan = &plans[piece.tensor];
            copy_piece(plan, piece, &source, &mut buffers, format)?;
            let at = offsets[piece.tensor] + piece.from * format.bytes();
            output
                .write_all_at(&buffers.output, at)
                .map_err(ImportError::io("write", path))?;
            // Nobody listens any more only after another thread has failed.
            let _ = report.send(Ok(piece.count));
        }
        Ok(())
    };
    let workers = threads.clamp(1, pieces.len().max(1));
    let result: Result<(), ImportError> = std::thread::scope(|scope| {
        for _ in 0..workers {
            let (report, work, failed) = (report.clone(), &work, &failed);
            scope.spawn(move || {
                if let Err(error) = work(&report) {
                    failed.store(true, Ordering::Relaxed);
                    let _ = report.send(Err(error));
                }
            });
        }
        drop(report); // so that the loop ends with the last worker, whatever ends it
        let mut done = 0;
        progress(0, total);
        for count in reports {
            done += count?;
            progress(done, total);
        }
        Ok(())
    });
    result?;
    output
        .sync_all()
        .map_err(ImportError::io("flush to disk", path))?;
    Ok(length)
}
