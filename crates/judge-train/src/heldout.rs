//! What every look at held-out data needs again: made at the first look, kept in an unnamed file of the run's folder, which the
//! system keeps in memory as far as there is room and removes with the process.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::bytes::in_blocks;
use crate::source::Unreadable;
use crate::{Error, Result};

/// The most that is kept, in bytes; what is beyond is made anew at every look.
const MOST: u64 = 16 << 30;

/// A part of the held-out examples.
pub(crate) struct Part {
    /// What is looked at: bytes of pictures, or what is predicted from them at each of several timesteps.
    pub pictures: Vec<Tensor>,
    /// Token ids, i64 `[B, L]`.
    pub input_ids: Tensor,
}

/// The parts of the held-out examples that are known by now.
pub struct Heldout {
    folder: PathBuf,
    /// Whether there will be another look.
    again: bool,
    most: u64,
    file: Option<File>,
    length: u64,
    parts: HashMap<usize, Option<Kept>>,
    unreadable: Vec<Unreadable>,
}

/// A part whose pictures are in the file.
struct Kept {
    pictures: Vec<Place>,
    input_ids: Tensor,
}

struct Place {
    start: u64,
    kind: Kind,
    size: Vec<i64>,
}

impl Heldout {
    /// Nothing is known; `again`: there will be more than one look, so what is made is kept in `folder`.
    pub(crate) fn new(folder: &Path, again: bool) -> Self {
        let folder = folder.to_path_buf();
        Self { folder, again, most: MOST, file: None, length: 0, parts: HashMap::new(), unreadable: Vec::new() }
    }

    /// Part `number`, as it is kept, else as `make` makes it, which notes what is unreadable and returns `None` where nothing
    /// is left. Pictures that were kept are on the CPU. Errors: those of `make`; a file that cannot be read.
    pub(crate) fn part(
        &mut self,
        number: usize,
        make: impl FnOnce(&mut Vec<Unreadable>) -> Result<Option<Part>>,
    ) -> Result<Option<Part>> {
        if let Some(kept) = self.parts.get(&number) {
            return kept.as_ref().map(|kept| self.read(kept)).transpose();
        }
        let part = make(&mut self.unreadable)?;
        if self.again
            && let Err(error) = self.keep(number, part.as_ref())
        {
            tracing::warn!("held-out pictures are prepared anew at every look: {error}");
            self.again = false;
        }
        Ok(part)
    }

    /// Held-out examples found unreadable since this was last asked.
    pub(crate) fn take_unreadable(&mut self) -> Vec<Unreadable> {
        std::mem::take(&mut self.unreadable)
    }

    /// Errors: a full disk, above all; then nothing of the part is known.
    fn keep(&mut self, number: usize, part: Option<&Part>) -> Result<()> {
        let Some(Part { pictures, input_ids }) = part else {
            self.parts.insert(number, None);
            return Ok(());
        };
        let bytes = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        if self.length + pictures.iter().map(bytes).sum::<u64>() > self.most {
            return Ok(());
        }
        let failed = |folder: &Path, e| seedpo_tensor::Error::io(folder, e);
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(&self.folder).map_err(|e| failed(&self.folder, e))?);
        }
        let (Some(file), folder) = (self.file.as_mut(), &self.folder) else { return Ok(()) };
        file.seek(SeekFrom::Start(self.length)).map_err(|e| failed(folder, e))?;
        let mut start = self.length;
        let mut places = Vec::with_capacity(pictures.len());
        for tensor in pictures {
            in_blocks(tensor, |block| file.write_all(block).map_err(|e| Error::from(failed(folder, e))))?;
            places.push(Place { start, kind: tensor.kind(), size: tensor.size() });
            start += bytes(tensor);
        }
        self.length = start;
        self.parts.insert(number, Some(Kept { pictures: places, input_ids: input_ids.shallow_clone() }));
        Ok(())
    }

    fn read(&self, kept: &Kept) -> Result<Part> {
        let one = |place: &Place| -> Result<Tensor> {
            let numbers: i64 = place.size.iter().product();
            let mut bytes = vec![0; numbers as usize * place.kind.elt_size_in_bytes()];
            if let Some(mut file) = self.file.as_ref() {
                let read = file.seek(SeekFrom::Start(place.start)).and_then(|_| file.read_exact(&mut bytes));
                read.map_err(|e| seedpo_tensor::Error::io(&self.folder, e))?;
            }
            Ok(Tensor::f_from_data_size(&bytes, &place.size, place.kind)?.f_to_device(Device::Cpu)?)
        };
        let pictures = kept.pictures.iter().map(one).collect::<Result<_>>()?;
        Ok(Part { pictures, input_ids: kept.input_ids.shallow_clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_data::{BadRow, Reason};

    fn part(seed: i64) -> Part {
        let floats = Tensor::arange_start(seed, seed + 24, (Kind::Float, Device::Cpu)).sqrt().view([2, 3, 4]);
        let bytes = floats.to_kind(Kind::Uint8).transpose(0, 2);
        Part { pictures: vec![bytes, floats], input_ids: Tensor::from_slice(&[seed, 7]) }
    }

    fn same(a: &Part, b: &Part) -> bool {
        a.pictures.iter().zip(&b.pictures).all(|(a, b)| a == b && a.kind() == b.kind()) && a.input_ids == b.input_ids
    }

    #[test]
    fn a_part_is_made_once_and_kept_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let mut heldout = Heldout::new(folder.path(), true);
        for seed in 0..3 {
            assert!(same(&heldout.part(seed, |_| Ok(Some(part(seed as i64)))).unwrap().unwrap(), &part(seed as i64)));
        }
        let why = BadRow { place: "a.png".into(), reason: Reason::Undecodable, detail: "cut".into() };
        let none = heldout.part(3, |unreadable| {
            unreadable.push(Unreadable { index: 9, why });
            Ok(None)
        });
        assert!(none.unwrap().is_none());
        assert_eq!(heldout.take_unreadable().len(), 1);
        for seed in [2, 0, 1, 0] {
            let kept = heldout.part(seed, |_| panic!("made before")).unwrap().unwrap();
            assert!(same(&kept, &part(seed as i64)), "{seed}");
        }
        assert!(heldout.part(3, |_| panic!("known to be empty")).unwrap().is_none());
        assert!(heldout.take_unreadable().is_empty());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn what_cannot_be_kept_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        // A part takes 5 bytes for each of 24 numbers.
        let full = Heldout { most: 130, ..Heldout::new(folder.path(), true) };
        let once = Heldout::new(folder.path(), false);
        let nowhere = Heldout::new(&folder.path().join("missing"), true);
        for (mut heldout, made) in [(full, 3), (once, 4), (nowhere, 4)] {
            let mut calls = 0;
            for seed in [0, 1, 0, 1] {
                let found = heldout.part(seed, |_| {
                    calls += 1;
                    Ok(Some(part(seed as i64)))
                });
                assert!(same(&found.unwrap().unwrap(), &part(seed as i64)));
            }
            assert_eq!(calls, made);
        }
    }
}
