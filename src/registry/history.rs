//! The `current` pointer: the version in use, and those that were before it.

use super::publish::replace_file;
use super::{CURRENT, LoadedVersion, Registry, RegistryError, check_name, lock};

/// Versions that `rollback` remembers.
const REMEMBERED_MAX: usize = 100;

/// What a promotion may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected<'v> {
    /// Whatever is current: an order.
    Any,
    /// Nothing: no version is current yet.
    Nothing,
    /// This version and no other.
    Version(&'v str),
}

impl Expected<'_> {
    fn holds(self, current: Option<&str>) -> bool {
        match self {
            Self::Any => true,
            Self::Nothing => current.is_none(),
            Self::Version(version) => current == Some(version),
        }
    }

    fn name(self) -> Option<String> {
        match self {
            Self::Version(version) => Some(version.to_owned()),
            Self::Any | Self::Nothing => None,
        }
    }
}

impl Registry {
    /// The version in use, if any.
    ///
    /// # Errors
    /// [`RegistryError::Io`]; [`RegistryError::Name`] when the pointer holds something else.
    pub fn current(&self) -> Result<Option<String>, RegistryError> {
        Ok(self.pointers()?.into_iter().next())
    }

    /// Verifies a version, makes it the current one if `expected` still holds, and returns it. The one before
    /// is remembered for [`rollback`](Self::rollback). Promoting the current version again changes nothing.
    ///
    /// # Errors
    /// As for [`load`](Self::load) and [`promote_loaded`](Self::promote_loaded).
    pub fn promote(&self, version: &str, expected: Expected<'_>) -> Result<LoadedVersion, RegistryError> {
        let loaded = self.load(version)?;
        self.promote_loaded(&loaded, expected)?;
        Ok(loaded)
    }

    /// The same with a version that was loaded, and so verified, before.
    ///
    /// # Errors
    /// [`RegistryError::Moved`] when `expected` does not hold: the pointer is where it was then.
    /// [`RegistryError::Missing`] when the version is not of this registry; [`RegistryError::Busy`];
    /// [`RegistryError::Io`].
    pub fn promote_loaded(
        &self,
        loaded: &LoadedVersion,
        expected: Expected<'_>,
    ) -> Result<(), RegistryError> {
        let version = loaded.manifest.version.as_str();
        self.folder(version)?;
        let _lock = lock::acquire(&self.root)?;
        let mut pointers = self.pointers()?;
        let current = pointers.first().map(String::as_str);
        if !expected.holds(current) {
            return Err(RegistryError::Moved {
                version: version.to_owned(),
                expected: expected.name(),
                found: current.map(str::to_owned),
            });
        }
        if current == Some(version) {
            return Ok(());
        }
        remember(&mut pointers, version);
        self.point(&pointers)
    }

    /// Goes back to the version that was current before, unless `fits` objects to it; returns it. Going back
    /// twice goes back two versions.
    ///
    /// # Errors
    /// [`RegistryError::NoCurrent`], [`RegistryError::NoPredecessor`], [`RegistryError::Busy`], those of
    /// `fits`, and as for [`load`](Self::load).
    pub fn rollback(
        &self,
        fits: impl FnOnce(&LoadedVersion) -> Result<(), RegistryError>,
    ) -> Result<LoadedVersion, RegistryError> {
        let _lock = lock::acquire(&self.root)?;
        let pointers = self.pointers()?;
        match pointers.as_slice() {
            [] => Err(RegistryError::NoCurrent {
                root: self.root.clone(),
            }),
            [current] => Err(RegistryError::NoPredecessor {
                current: current.clone(),
                root: self.root.clone(),
            }),
            [_, before @ ..] => {
                let loaded = self.load(&before[0])?;
                fits(&loaded)?;
                self.point(before)?;
                Ok(loaded)
            }
        }
    }

    /// Goes back to a version by name, unless `fits` objects to it; returns it. What was current since is
    /// forgotten, so that a [`rollback`](Self::rollback) behind it goes further back. A version that was not
    /// current lately becomes the current one as by a promotion.
    ///
    /// # Errors
    /// [`RegistryError::Busy`], those of `fits`, and as for [`load`](Self::load).
    pub fn rollback_to(
        &self,
        version: &str,
        fits: impl FnOnce(&LoadedVersion) -> Result<(), RegistryError>,
    ) -> Result<LoadedVersion, RegistryError> {
        let loaded = self.load(version)?;
        fits(&loaded)?;
        let _lock = lock::acquire(&self.root)?;
        let mut pointers = self.pointers()?;
        match pointers.iter().position(|known| known == version) {
            Some(0) => return Ok(loaded),
            Some(at) => drop(pointers.drain(..at)),
            None => remember(&mut pointers, version),
        }
        self.point(&pointers)?;
        Ok(loaded)
    }

    pub(super) fn pointers(&self) -> Result<Vec<String>, RegistryError> {
        let path = self.root.join(CURRENT);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(RegistryError::io("read", &path)(error)),
        };
        let names: Vec<String> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .take(REMEMBERED_MAX)
            .map(str::to_owned)
            .collect();
        names.iter().try_for_each(|name| check_name(name))?;
        Ok(names)
    }

    /// Writes the pointer; the caller holds the lock.
    fn point(&self, pointers: &[String]) -> Result<(), RegistryError> {
        replace_file(&self.root.join(CURRENT), (pointers.join("\n") + "\n").as_bytes())
    }
}

/// Puts a version before those that were current.
fn remember(pointers: &mut Vec<String>, version: &str) {
    pointers.insert(0, version.to_owned());
    pointers.truncate(REMEMBERED_MAX);
}
