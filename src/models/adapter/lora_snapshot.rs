//! `LoraSnapshot`: the low-rank part of an adapter version as plain values, which any thread may hold.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind};

use super::plain::{PlainFile, PlainTensor};
use crate::models::ModelError;
use crate::nn::lora::{LoraConfig, LoraSet, LoraSite, WEIGHTS_FILE};
use crate::weights::{Mismatch, Misshapen, Mistyped, WeightsError};

/// Settings and values of a set of low-rank adapters.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSnapshot {
    config: LoraConfig,
    tensors: BTreeMap<String, PlainTensor>,
}

impl LoraSnapshot {
    /// Reads a folder in the layout of the `peft` library.
    ///
    /// # Errors
    /// [`ModelError`] when a file cannot be read, or its settings ask for what is not done here.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let config = LoraConfig::open(folder).map_err(|error| ModelError::File {
            path: folder.to_owned(),
            reason: error.to_string(),
        })?;
        let file = PlainFile::read(&folder.join(WEIGHTS_FILE))?;
        Ok(Self {
            config,
            tensors: file.tensors,
        })
    }

    /// The values of a set.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when libtorch fails.
    pub fn of(set: &LoraSet) -> Result<Self, ModelError> {
        let tensors = set.parameters().into_iter();
        Ok(Self {
            config: set.config().clone(),
            tensors: tensors
                .map(|(name, tensor)| Ok((name, PlainTensor::from_tensor(&tensor)?)))
                .collect::<Result<_, ModelError>>()?,
        })
    }

    /// Its settings.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// All values by `peft`'s names.
    pub fn tensors(&self) -> &BTreeMap<String, PlainTensor> {
        &self.tensors
    }

    /// A frozen set for serving on `device`, its matrices in `dtype`.
    ///
    /// # Errors
    /// [`ModelError::Weights`] with every tensor that does not fit the settings and `sites`;
    /// [`ModelError::File`] when the settings name projections that the language model does not have.
    pub fn to_set(&self, sites: &[LoraSite], dtype: Kind, device: Device) -> Result<LoraSet, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let origin = || Path::new("lora").join(WEIGHTS_FILE);
        let unfit = |error: crate::nn::lora::LoraError| ModelError::File {
            path: origin(),
            reason: error.to_string(),
        };
        let set = LoraSet::new(self.config.clone(), sites, device).map_err(unfit)?;
        let declared = set.parameters();
        let mut mismatch = Mismatch {
            checkpoint: origin(),
            ..Mismatch::default()
        };
        for (name, own) in &declared {
            match self.tensors.get(name) {
                None => mismatch.missing.push(name.clone()),
                Some(found) if found.shape != own.size() => mismatch.misshapen.push(Misshapen {
                    name: name.clone(),
                    declared: own.size(),
                    found: (found.shape.iter())
                        .map(|size| usize::try_from(*size).unwrap_or(0))
                        .collect(),
                }),
                Some(found) if found.floats().is_none() => mismatch.mistyped.push(Mistyped {
                    name: name.clone(),
                    found: "I64".into(),
                }),
                Some(_) => {}
            }
        }
        mismatch.unexpected = (self.tensors.keys())
            .filter(|name| !declared.contains_key(*name))
            .cloned()
            .collect();
        if !mismatch.is_empty() {
            return Err(WeightsError::from(Box::new(mismatch)).into());
        }
        for (name, mut own) in declared {
            own.f_copy_(&self.tensors[&name].to_tensor(device)?)?;
        }
        set.snapshot(dtype, device).map_err(unfit)
    }
}
