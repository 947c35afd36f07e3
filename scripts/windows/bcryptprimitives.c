/*
 * The one function that Rust's standard library takes from bcryptprimitives.dll, for Wine
 * releases that lack it (8 and older). Windows has the real one: this file is not for Windows.
 */

#include <windows.h>

/* What the headers call RtlGenRandom; advapi32 knows it by this name only. */
BOOLEAN NTAPI SystemFunction036(void *buffer, ULONG length);

__declspec(dllexport) BOOL WINAPI ProcessPrng(BYTE *buffer, SIZE_T length)
{
    while (length > 0) {
        ULONG part = length > MAXLONG ? MAXLONG : (ULONG)length;
        if (!SystemFunction036(buffer, part))
            return FALSE;
        buffer += part;
        length -= part;
    }
    return TRUE;
}
