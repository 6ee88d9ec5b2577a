.intel_syntax noprefix
.text
rest:
# rdi=table rsi=count rdx=pagemap fd rcx=descriptor r8=timeout ms r9=store [rsp+8]=where it is full
 push rbx
 push rbp
 push r12
 push r13
 push r14
 push r15
 mov r15, [rsp+56]
 push r9
 push rcx
 push r8
 sub rsp, 512
 mov rbx, rdi
 mov rbp, rsi
 mov r14, rdx
 mov r13, r9
1: test rbp, rbp
 jz 5f
 xor r12d, r12d
2: cmp r12, [rbx+8]
 jae 4f
 test r12d, 0x3ffff
 jnz 6f
 mov rdi, r14
 mov rsi, rsp
 mov edx, 512
 mov r10, [rbx]
 add r10, r12
 shr r10, 9
 mov eax, 17
 syscall
 cmp eax, 512
 jne 4f
6: mov eax, r12d
 shr eax, 9
 and eax, 0x1f8
 mov rax, [rsp+rax]
 shr rax, 61
 cmp eax, 4
 jne 3f
 mov rsi, [rbx]
 add rsi, r12
 mov rdi, [rbx+16]
 add rdi, r12
 mov r8, r13
 mov ecx, 512
7: test ecx, ecx
 repe cmpsq
 je 9f
 cmp r8, r15
 jae 3f
 lea rax, [rsi-8]
 mov [r8], rax
 lea rdx, [r8+8]
 add r8, 16
8: mov rax, [rsi-8]
 mov [r8], rax
 add r8, 8
 jrcxz 0f
 dec rcx
 cmpsq
 jne 8b
0: lea rax, [r8-8]
 sub rax, rdx
 shr rax, 3
 mov [rdx], rax
 jmp 7b
9: mov rax, r8
 sub rax, r13
 cmp rax, 2048
 ja 3f
 mov r13, r8
 mov rdi, [rbx]
 add rdi, r12
 mov esi, 4096
 mov edx, 4
 mov eax, 28
 syscall
3: add r12, 4096
 jmp 2b
4: add rbx, 40
 dec rbp
 jmp 1b
5: mov rdi, r14
 mov eax, 3
 syscall
 add rsp, 512
 pop rdx
 pop rax
 bts rax, 32
 push rax
 mov rdi, rsp
 mov esi, 1
 mov eax, 7
 syscall
 mov rbx, rax
 pop rdx
 pop rsi
1: cmp rsi, r13
 jae 2f
 lodsq
 mov rdi, rax
 lodsq
 mov rcx, rax
 rep movsq
 jmp 1b
2: mov rax, rbx
 pop r15
 pop r14
 pop r13
 pop r12
 pop rbp
 pop rbx
 ret
