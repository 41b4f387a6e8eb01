//! u8 RGB images in host memory, checked once.

use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Equally sized u8 RGB images.
pub(crate) struct Images {
    pub pixels: Vec<u8>,
    pub count: usize,
    pub height: usize,
    pub width: usize,
}

impl Images {
    /// Copies a u8 `[N, H, W, 3]` tensor. Errors: [`Error::Shape`] for anything else or empty images.
    pub fn from_tensor(what: &'static str, images: &Tensor) -> Result<Self> {
        let wrong = || Error::Shape {
            what,
            expected: "u8 [N, H, W, 3] with H, W >= 1".to_owned(),
            found: format!("{:?} {:?}", images.kind(), images.size()),
        };
        let [count, height, width, 3] = images.size()[..] else { return Err(wrong()) };
        if images.kind() != Kind::Uint8 || height < 1 || width < 1 {
            return Err(wrong());
        }
        let pixels = Vec::try_from(&images.f_to_device(Device::Cpu)?.f_contiguous()?.f_view([-1])?)?;
        Ok(Self { pixels, count: count as usize, height: height as usize, width: width as usize })
    }

    /// Image `index` as H·W·3 bytes.
    pub fn image(&self, index: usize) -> &[u8] {
        let size = self.height * self.width * 3;
        &self.pixels[index * size..(index + 1) * size]
    }
}
