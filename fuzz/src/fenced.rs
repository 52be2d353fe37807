//! Memory in which an input ends where the process may not read on.

#[cfg(miri)]
pub use exact::Fenced;
#[cfg(not(miri))]
pub use pages::Fenced;

#[cfg(not(miri))]
mod pages {
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
    use std::io;
    use std::ptr::NonNull;

    /// Pages for inputs, and one behind them that nobody may touch.
    #[derive(Debug)]
    pub struct Fenced {
        start: NonNull<u8>,
        size: usize,
        fence: usize,
    }

    impl Fenced {
        /// Room for inputs of up to `size` bytes.
        ///
        /// # Errors
        /// The system has no memory.
        pub fn new(size: usize) -> io::Result<Self> {
            let page = rustix::param::page_size();
            let size = size.next_multiple_of(page);
            // SAFETY: a new mapping, at a place that the system chooses.
            let start = unsafe {
                mmap_anonymous(
                    std::ptr::null_mut(),
                    size + page,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE,
                )?
            };
            // SAFETY: the last page of the mapping above.
            unsafe { mprotect(start.byte_add(size), page, MprotectFlags::empty())? };
            let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self { start, size, fence: page })
        }

        /// Puts an input in front of the fence. One that is too long loses its end.
        pub fn put(&mut self, input: &[u8]) -> &[u8] {
            let input = &input[..input.len().min(self.size)];
            // SAFETY: the mapping has `size` bytes before the fence, lives as long as `self`, and nothing else refers to it.
            let pages = unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) };
            let place = &mut pages[self.size - input.len()..];
            place.copy_from_slice(input);
            place
        }
    }

    impl Drop for Fenced {
        fn drop(&mut self) {
            // SAFETY: the mapping made by `new`; whoever has borrowed from it is gone.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.size + self.fence) };
        }
    }
}

/// Miri sees by itself where an allocation ends.
#[cfg(miri)]
mod exact {
    #[derive(Debug)]
    pub struct Fenced(Box<[u8]>);

    impl Fenced {
        pub fn new(_size: usize) -> std::io::Result<Self> {
            Ok(Self(Box::default()))
        }

        pub fn put(&mut self, input: &[u8]) -> &[u8] {
            self.0 = input.into();
            &self.0
        }
    }
}
