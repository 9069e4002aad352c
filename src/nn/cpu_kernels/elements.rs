//! The elements of a tensor on the CPU, read and written where they lie.

use half::bf16;
use tch::{Device, Kind, Tensor};

use crate::nn::accel::records_gradients;

/// Elements of a tensor with their layout.
#[derive(Clone, Debug)]
pub(super) struct View<'t> {
    layout: Layout,
    elements: Elements<'t>,
}

/// Elements side by side.
#[derive(Clone, Copy, Debug)]
pub(super) enum Elements<'t> {
    F32(&'t [f32]),
    Bf16(&'t [bf16]),
}

/// All elements of a contiguous f32 tensor, to be written.
#[derive(Debug)]
pub(super) struct ViewMut<'t> {
    /// Sizes of the axes.
    pub(super) size: Vec<usize>,
    /// Row by row.
    pub(super) elements: &'t mut [f32],
}

/// Sizes, strides, and how many elements lie from the first to the last one.
#[derive(Clone, Debug)]
struct Layout {
    size: Vec<usize>,
    stride: Vec<usize>,
    span: usize,
}

impl Layout {
    /// None for tensors that are empty or elsewhere than on the CPU, and where neighbours of the last axis
    /// are not neighbours in memory.
    fn of(tensor: &Tensor) -> Option<Self> {
        if tensor.device() != Device::Cpu || tensor.is_sparse() || tensor.is_mkldnn() {
            return None;
        }
        let whole = |elements: Vec<i64>| -> Option<Vec<usize>> {
            elements
                .into_iter()
                .map(|number| usize::try_from(number).ok())
                .collect()
        };
        let (size, stride) = (whole(tensor.size())?, whole(tensor.stride())?);
        let dense = stride.last() == Some(&1) || size.last() == Some(&1);
        if size.contains(&0) || !dense {
            return None;
        }
        let span = 1
            + (size.iter().zip(&stride))
                .map(|(size, stride)| (size - 1) * stride)
                .sum::<usize>();
        Some(Self { size, stride, span })
    }

    /// Whether the elements stand row by row without gaps.
    fn contiguous(&self) -> bool {
        let mut expected = 1;
        (self.size.iter().zip(&self.stride)).rev().all(|(size, stride)| {
            let fits = *size == 1 || *stride == expected;
            expected *= size;
            fits
        })
    }
}

impl<'t> View<'t> {
    /// Looks into a tensor, where nothing is recorded for gradients; see [`Layout::of`] for where else it
    /// cannot.
    pub(super) fn of(tensor: &'t Tensor) -> Option<Self> {
        if records_gradients() {
            return None;
        }
        let layout = Layout::of(tensor)?;
        let (at, span) = (tensor.data_ptr(), layout.span);
        let elements = match tensor.kind() {
            // SAFETY: a strided CPU tensor of this dtype has its elements from `at` on, `span` of them to the
            // last one; the borrow keeps its storage alive, and tensors do not cross threads while they are
            // borrowed (`Tensor` is not `Sync`).
            Kind::Float => Elements::F32(unsafe { std::slice::from_raw_parts(at.cast(), span) }),
            // SAFETY: as above.
            Kind::BFloat16 => Elements::Bf16(unsafe { std::slice::from_raw_parts(at.cast(), span) }),
            _ => return None,
        };
        Some(Self { layout, elements })
    }

    /// Sizes of the axes.
    pub(super) fn size(&self) -> &[usize] {
        &self.layout.size
    }

    /// All elements row by row, where they lie so.
    pub(super) fn contiguous(&self) -> Option<Elements<'t>> {
        self.layout.contiguous().then_some(self.elements)
    }

    /// The elements along the last axis at `at`, a place on all axes before it, in f32; `scratch` is buffer
    /// for them.
    pub(super) fn row<'s>(&'s self, at: &[usize], scratch: &'s mut Vec<f32>) -> &'s [f32] {
        let Layout { size, stride, .. } = &self.layout;
        let first: usize = at.iter().zip(stride).map(|(at, stride)| at * stride).sum();
        let width = size[size.len() - 1];
        self.elements.part(first, width).as_f32(scratch)
    }
}

impl<'t> Elements<'t> {
    pub(super) fn len(self) -> usize {
        match self {
            Self::F32(elements) => elements.len(),
            Self::Bf16(elements) => elements.len(),
        }
    }

    /// The addresses that the elements take.
    fn memory(self) -> std::ops::Range<usize> {
        let (start, bytes) = match self {
            Self::F32(elements) => (elements.as_ptr() as usize, size_of_val(elements)),
            Self::Bf16(elements) => (elements.as_ptr() as usize, size_of_val(elements)),
        };
        start..start + bytes
    }

    /// The elements, where they are f32.
    pub(super) fn f32(self) -> Option<&'t [f32]> {
        match self {
            Self::F32(elements) => Some(elements),
            Self::Bf16(_) => None,
        }
    }

    fn part(self, first: usize, count: usize) -> Self {
        match self {
            Self::F32(elements) => Self::F32(&elements[first..first + count]),
            Self::Bf16(elements) => Self::Bf16(&elements[first..first + count]),
        }
    }

    /// The elements in f32, in `buffer` where they are not already.
    pub(super) fn as_f32<'s>(self, buffer: &'s mut Vec<f32>) -> &'s [f32]
    where
        't: 's,
    {
        match self {
            Self::F32(elements) => elements,
            Self::Bf16(_) => {
                self.widen_into(buffer);
                buffer
            }
        }
    }

    /// Copies the elements in f32.
    pub(super) fn widen_into(self, buffer: &mut Vec<f32>) {
        buffer.clear();
        match self {
            Self::F32(elements) => buffer.extend_from_slice(elements),
            // Every bf16 is the upper half of an f32.
            Self::Bf16(elements) => {
                buffer.extend(
                    elements
                        .iter()
                        .map(|number| f32::from_bits(u32::from(number.to_bits()) << 16)),
                );
            }
        }
    }
}

impl<'t> ViewMut<'t> {
    /// Looks into a contiguous f32 tensor on the CPU that shares no memory with `other`.
    ///
    /// # Safety
    /// While the view lives, nothing else reads or writes the tensor's storage.
    pub(super) unsafe fn of(tensor: &'t mut Tensor, other: &View<'_>) -> Option<Self> {
        let layout = Layout::of(tensor)?;
        if tensor.kind() != Kind::Float || !layout.contiguous() {
            return None;
        }
        let start = tensor.data_ptr() as usize;
        let memory = start..start + layout.span * size_of::<f32>();
        let read = other.elements.memory();
        if memory.start < read.end && read.start < memory.end {
            return None;
        }
        // SAFETY: as in `View::of`; the caller keeps others away, and `other` lies elsewhere.
        let elements = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), layout.span) };
        Some(Self {
            size: layout.size,
            elements,
        })
    }
}

/// The elements of a contiguous i8 tensor on the CPU.
pub(super) fn qweight_of(tensor: &Tensor) -> Option<&[i8]> {
    let layout = Layout::of(tensor)?;
    if tensor.kind() != Kind::Int8 || !layout.contiguous() {
        return None;
    }
    // SAFETY: as in `View::of`.
    Some(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), layout.span) })
}

/// A new tensor on the CPU with these elements, rounded to `dtype`; none for dtypes other than f32 and bf16.
pub(super) fn tensor_of(elements: &[f32], size: &[usize], dtype: Kind) -> Option<Tensor> {
    let size: Vec<i64> = size.iter().map(|size| *size as i64).collect();
    let tensor = Tensor::f_empty(&size, (dtype, Device::Cpu)).ok()?;
    if tensor.numel() != elements.len() {
        return None;
    }
    let at = tensor.data_ptr();
    match dtype {
        Kind::Float => {
            // SAFETY: a new tensor has its elements side by side from `at` on, as many as its size says, and
            // nobody else looks at them yet; every pattern of bits is a value.
            unsafe { std::slice::from_raw_parts_mut(at.cast(), elements.len()) }.copy_from_slice(elements)
        }
        Kind::BFloat16 => {
            // SAFETY: as above.
            let rounded: &mut [bf16] = unsafe { std::slice::from_raw_parts_mut(at.cast(), elements.len()) };
            for (rounded, number) in rounded.iter_mut().zip(elements) {
                *rounded = round(*number);
            }
        }
        _ => return None,
    }
    Some(tensor)
}

/// To the nearest bf16, ties to even, as libtorch does.
fn round(number: f32) -> bf16 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    bf16::from_bits(if number.is_nan() { 0x7fc0 } else { rounded as u16 })
}
