.intel_syntax noprefix
.text
take:
 push rbx
 push rbp
 push r12
 push r13
 mov rbx, rdi
 mov rbp, rsi
 mov r12, rdx
1: test rbp, rbp
 jz 5f
 mov rsi, [rbx]
 mov rdi, [rbx+32]
 mov rcx, [rbx+8]
 shr rcx, 3
 rep movsq
 mov rdi, [rbx]
 mov rsi, [rbx+8]
 mov edx, 3
 mov r10d, 0x12
 mov r8, r12
 mov r9, [rbx+24]
 mov eax, 9
 syscall
 cmp rax, [rbx]
 jne 5f
 xor r13d, r13d
2: cmp r13, [rbx+8]
 jae 4f
 mov rsi, [rbx+32]
 add rsi, r13
 mov rdi, [rbx+16]
 add rdi, r13
 mov ecx, 512
 repe cmpsq
 je 3f
 mov rsi, [rbx+32]
 add rsi, r13
 mov rdi, [rbx]
 add rdi, r13
 mov ecx, 512
 rep movsq
3: add r13, 4096
 jmp 2b
4: add rbx, 40
 dec rbp
 jmp 1b
5: mov rax, rbp
 pop r13
 pop r12
 pop rbp
 pop rbx
 ret
