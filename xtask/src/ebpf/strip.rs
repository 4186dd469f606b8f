//! Takes the debug sections out of an object. BTF stays: the kernel wants it.

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

/// `object` without its `.debug_*` sections, their relocations, and the symbols that named them.
///
/// # Errors
///
/// `object` is no ELF file that can be rewritten.
pub(super) fn debug_sections(object: &[u8]) -> object::build::Result<Vec<u8>> {
    let mut elf = Builder::read(object)?;
    for section in &mut elf.sections {
        let name = section.name.as_slice();
        let name = name.strip_prefix(b".rel").unwrap_or(name);
        section.delete |= name.starts_with(b".debug_");
    }
    elf.delete_orphans();
    // LLVM keeps the sections' names with the symbols'; they need a place of their own here.
    let names = elf.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    elf.write(&mut stripped)?;
    Ok(stripped)
}
