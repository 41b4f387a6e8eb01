//! The bytes of tensors, a block at a time: to be hashed or written without a copy of the whole.

use tch::{Device, Kind, TchError, Tensor};

/// What is copied at a time, in bytes.
const BLOCK: usize = 8 << 20;

/// Gives `take` the bytes of a tensor in their order, in blocks. Errors: libtorch's, and those of `take`, after which it is
/// not called again.
pub(crate) fn in_blocks<E: From<TchError>>(
    tensor: &Tensor,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?.f_view([-1])?.f_view_dtype(Kind::Uint8)?;
    let mut block = vec![0; BLOCK.min(flat.numel())];
    for start in (0..flat.numel()).step_by(BLOCK) {
        let length = BLOCK.min(flat.numel() - start);
        flat.f_narrow(0, start as i64, length as i64)?.f_copy_data_u8(&mut block, length)?;
        take(&block[..length])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_the_tensor() {
        let rows = (BLOCK / 4 + 3) as i64;
        let tensor = Tensor::arange(2 * rows, (Kind::Int, Device::Cpu)).view([2, rows]).transpose(0, 1);
        let mut bytes = Vec::new();
        let mut calls = 0;
        in_blocks::<TchError>(&tensor, |block| {
            bytes.extend_from_slice(block);
            calls += 1;
            Ok(())
        })
        .unwrap();
        let expected = Vec::<i32>::try_from(tensor.contiguous().view([-1])).unwrap();
        assert!(calls == 3 && bytes == expected.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>());
        in_blocks::<TchError>(&Tensor::zeros([0], (Kind::Float, Device::Cpu)), |_| panic!("nothing to take")).unwrap();
        in_blocks::<TchError>(&Tensor::from(1f32), |block| {
            assert_eq!(block, 1f32.to_le_bytes());
            Ok(())
        })
        .unwrap();
    }
}
